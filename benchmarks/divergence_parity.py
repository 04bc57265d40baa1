"""Compare our divergence with llama-perplexity's --kl-divergence, on the same models and text.

    python -m benchmarks.divergence_parity MODEL.gguf --llama-perplexity .../llama-perplexity \\
        --kv q8_0,q8_0/q4_0,q4_0 --against OTHER.gguf

For each pair of cache types the base is the model with an f16 cache; with --against, OTHER with an
f16 cache is compared with the model too. llama-perplexity keeps the base in a file, its
log-probabilities rounded to 16 bits, while we compare logits in memory. So each figure is
calculated twice from the logits that we read: by our formulas, and by those of llama-perplexity,
rounding included. The latter are to be what it prints; the exit code is 1 where a figure is off by
more than two units of its last digit. Use the llama.cpp commit that `ggufrope doctor` names.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import record
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.divergence import Divergence, DivergencePlan, compare_contexts, summary
from ggufrope.evals.logprobs import Comparison, Logits
from ggufrope.evals.texts import Text, reference_text, windows_of
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

_TRIES = 10
"""Its log is written by a thread that the end of the process may overtake."""
Figures = dict[str, str]
_PRINTED = {
    "Mean KLD": r"Mean +KLD: +([\d.]+ ± +[\d.]+)",
    "Maximum KLD": r"Maximum KLD: +([\d.]+)",
    "99.9% KLD": r"99.9% +KLD: +([\d.]+)",
    "99.0% KLD": r"99.0% +KLD: +([\d.]+)",
    "90.0% KLD": r"90.0% +KLD: +([\d.]+)",
    "Median KLD": r"Median +KLD: +(-?[\d.]+)",
    "Mean Δp": r"Mean +Δp: +(-?[\d.]+ ± +[\d.]+) %",
    "99.0% Δp": r"99.0% +Δp: +(-?[\d.]+)%",
    "95.0% Δp": r"95.0% +Δp: +(-?[\d.]+)%",
    "75.0% Δp": r"75.0% +Δp: +(-?[\d.]+)%",
    "Median Δp": r"Median +Δp: +(-?[\d.]+)%",
    "25.0% Δp": r"25.0% +Δp: +(-?[\d.]+)%",
    "5.0% Δp": r" 5.0% +Δp: +(-?[\d.]+)%",
    "1.0% Δp": r" 1.0% +Δp: +(-?[\d.]+)%",
    "RMS Δp": r"RMS Δp +: +([\d.]+ ± +[\d.]+) %",
    "Same top p": r"Same top p: +([\d.]+ ± +[\d.]+) %",
    "Mean ln(PPL(Q)/PPL(base))": r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +(-?[\d.]+ ± +[\d.]+)",
}


def as_printed(base: Logits, variant: Logits, tokens: NDArray[np.int64]) -> Comparison:
    """Return a comparison by llama-perplexity's formulas (perplexity.cpp, `log_softmax`): the base
    in 16 bits for the 16 nat below its most probable token, and what lies lower left out."""
    rows = np.arange(len(tokens))
    top = base.max(axis=1, keepdims=True)
    low = np.maximum(base.min(axis=1, keepdims=True), top - np.float32(16))
    least = low - top - _log_sums(base).astype(np.float32)
    scale = (top - low) / np.float32(65535)
    steps = np.rint((base - low) * (1 / scale)).clip(0).astype(np.float32)
    p = (scale * steps + least).astype(np.float64)
    q = variant - variant.max(axis=1, keepdims=True) - _log_sums(variant)
    return Comparison(
        divergence=np.where(p > -16, np.exp(p) * (p - q), 0).sum(axis=1),
        base=p[rows, tokens],
        variant=q[rows, tokens],
        same_top=p.argmax(axis=1) == q.argmax(axis=1),
    )


def _log_sums(logits: Logits) -> NDArray[np.float64]:
    sums = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64).sum(axis=1)
    found: NDArray[np.float64] = np.log(sums)[:, None]
    return found


def printed_by(
    open_base: Callable[[int], Context],
    open_variant: Callable[[int], Context],
    model: Model,
    plan: DivergencePlan,
) -> Figures:
    """Return the figures of `as_printed` over the logits that we read."""
    found: list[Comparison] = []
    windows = windows_of(
        model, plan.text or reference_text(), n_ctx=plan.n_ctx, step=plan.n_ctx, most=plan.chunks
    )
    with open_base(plan.n_ctx) as base, open_variant(plan.n_ctx) as variant:
        for window in windows:
            base.rewind(0)
            variant.rewind(0)
            at, skip = plan.n_ctx // 2 + 1, plan.n_ctx // 2
            reading = (each.logits(window.tolist(), skip=skip) for each in (base, variant))
            for a, b in zip(*reading, strict=True):
                right = window[at : at + len(a)]
                found.append(as_printed(a[: len(right)], b[: len(right)], right))
                at += len(right)
    joined = {
        item.name: np.concatenate([getattr(each, item.name) for each in found])
        for item in fields(Comparison)
    }
    return dict(_figures(summary(Comparison(**joined))))


def ours(
    open_base: Callable[[int], Context],
    open_variant: Callable[[int], Context],
    model: Model,
    plan: DivergencePlan,
) -> Figures:
    """Return our figures as llama-perplexity prints them."""
    score = compare_contexts(plan, model, open_base, open_variant)
    if score.measured is None:
        raise SystemExit(f"nothing was measured: {score.reason}")
    return dict(_figures(score.measured))


def _figures(found: Divergence) -> Iterator[tuple[str, str]]:
    nat, rms, top, change = (
        (each.value or 0.0, each.standard_error or 0.0)
        for each in (found.divergence, found.delta_p_rms, found.same_top, found.nll_difference)
    )
    mean = found.delta_p.value or 0.0, found.delta_p.standard_error or 0.0
    yield "Mean KLD", "{:.6f} ± {:.6f}".format(*nat)
    yield "Maximum KLD", f"{found.divergence_max:.6f}"
    for percent, value in found.divergence_percentiles:
        yield f"{'Median' if percent == 50 else f'{percent:.1f}%'} KLD", f"{value:.6f}"
    yield "Mean Δp", f"{100 * mean[0]:.3f} ± {100 * mean[1]:.3f}"
    for percent, value in found.delta_p_percentiles:
        yield f"{'Median' if percent == 50 else f'{percent:.1f}%'} Δp", f"{100 * value:.3f}"
    yield "RMS Δp", f"{100 * rms[0]:.3f} ± {100 * rms[1]:.3f}"
    yield "Same top p", f"{100 * top[0]:.3f} ± {100 * top[1]:.3f}"
    yield "Mean ln(PPL(Q)/PPL(base))", "{:.6f} ± {:.6f}".format(*change)


class Reference:
    """llama-perplexity on one text, with the files that it keeps."""

    def __init__(self, program: Path, folder: Path, text: Text, options: argparse.Namespace):
        self._program, self._folder = program, folder
        self._common = ["-c", options.ctx, "-b", options.ctx, "-t", options.threads, "--no-escape"]
        self._chunks = options.chunks
        # It drops one newline at the end of a file.
        self._text = folder / "text.txt"
        self._text.write_text(text.content + "\n", encoding="utf-8", newline="")

    def keep_base(self, model: Path) -> None:
        """Write the log-probabilities of a model with an f16 cache."""
        self._call(model, "-f", self._text, "--chunks", self._chunks, *self._base)

    def figures(self, model: Path, kv: KvTypes) -> Figures:
        """Return what is printed of a model with these cache types, compared with the base."""
        words = "--kl-divergence", "--cache-type-k", kv.k, "--cache-type-v", kv.v
        for _ in range(_TRIES):
            printed = self._call(model, *self._base, *words)
            found = {name: re.search(pattern, printed) for name, pattern in _PRINTED.items()}
            if all(found.values()):
                return {
                    name: re.sub(r"± +", "± ", match[1]) for name, match in found.items() if match
                }
        raise SystemExit(f"{self._program} did not print every figure:\n{printed[-2000:]}")

    @property
    def _base(self) -> tuple[object, ...]:
        return "--kl-divergence-base", self._folder / "base.kld"

    def _call(self, model: Path, *words: object) -> str:
        command = [self._program, "-m", model, *self._common, *words]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self._program} failed:\n{done.stderr[-2000:]}")
        return done.stdout + done.stderr


def agrees(one: str, other: str) -> bool:
    """Return whether figures differ by at most two units of their last digit, or by 1e-5 of their
    size: llama-perplexity adds and interpolates in single precision."""
    pairs = ((float(a), float(b)) for a, b in zip(*map(_numbers, (one, other)), strict=True))
    unit = 2.01 * 10.0 ** -len(one.split(" ")[0].partition(".")[2])
    return all(abs(a - b) <= max(unit, 1e-5 * abs(a)) for a, b in pairs)


def _numbers(figure: str) -> list[str]:
    return figure.split(" ± ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-perplexity", type=Path, default=Path("llama-perplexity"))
    parser.add_argument("--kv", default="q8_0,q8_0/q4_0,q4_0")
    parser.add_argument("--against", type=Path, help="another file with the same vocabulary")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", default="divergence_parity", help="name of the result")
    options = parser.parse_args()
    text = reference_text()
    plan = DivergencePlan(n_ctx=options.ctx, text=text, chunks=options.chunks)
    variants = [(options.model, KvTypes.parse(kv)) for kv in options.kv.split(",")]
    if options.against is not None:
        variants.append((options.against, KvTypes(k="f16", v="f16")))
    compared: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as folder, Model.open(options.model) as model:
        reference = Reference(options.llama_perplexity, Path(folder), text, options)
        reference.keep_base(options.model)
        for path, kv in variants:
            with Model.open(path) as other:

                def opened(of: Model, types: KvTypes) -> Callable[[int], Context]:
                    kinds = {"type_k": types.k, "type_v": types.v, "n_threads": options.threads}
                    return lambda n: Context(of, ContextSettings(n_ctx=n, **kinds))

                f16 = KvTypes(k="f16", v="f16")
                base, variant = opened(model, f16), opened(other, kv)
                compared[f"{path.name} {kv}"] = {
                    "llama-perplexity": reference.figures(path, kv),
                    "by its formulas": printed_by(base, variant, model, plan),
                    "ggufrope": ours(base, variant, model, plan),
                }
    differing = {
        f"{name}: {figure}": (printed, each["by its formulas"][figure])
        for name, each in compared.items()
        for figure, printed in each["llama-perplexity"].items()
        if printed != each["by its formulas"][figure]
    }
    off = {name: pair for name, pair in differing.items() if not agrees(*pair)}
    record(
        options.record,
        {
            "base": f"{options.model.name}, f16 cache",
            "text": f"{text.source}, sha256 {text.sha256}",
            "n_ctx": options.ctx,
            "chunks": options.chunks,
            "threads": options.threads,
            "figures": sum(len(each["llama-perplexity"]) for each in compared.values()),
            "differing in the last digit": len(differing) - len(off),
            "differing by more": off,
            "compared": compared,
            "command": f"python -m benchmarks.divergence_parity {options.model.name} --ctx "
            f"{options.ctx} --chunks {options.chunks} --kv {options.kv}"
            + ("" if options.against is None else f" --against {options.against.name}"),
        },
    )
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
