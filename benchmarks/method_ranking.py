"""Rank the methods that `ggufrope advise` proposes, and cache types, by what they measure.

    python -m benchmarks.method_ranking [MODEL] [--multiples 2 4 8 16] [--results FILE]

Ask for needles at each multiple of the trained context, with a whole prompt per needle, under every
method at that very target, and again within the trained context. Then ask with each pair of K and V
types, under YaRN at the second multiple. `ggufrope/advice` takes its order and risks from the
result. The default model is nano, which takes a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope import RunPlan, RuntimeSettings, ScalingRequest, read_model, run
from ggufrope.advice.memory import CACHE_CHOICES
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.task import Haystack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ggufrope.report.summary import SummaryRow

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Needles of one method and cache at one length: recall with its interval (95 %), and nat.

    `context_tokens` is the length of the prompts, `multiple` that of the target.
    """

    method: str
    kv: str
    multiple: int
    context_tokens: int
    needles: int
    recall: float
    recall_low: float
    recall_high: float
    log_probability: float


def methods(target: int, *, keep_short: bool) -> tuple[ScalingRequest, ...]:
    """Return the requests to compare at `target` tokens; "none" is the model as it is."""
    yarn = ScalingRequest(scaling="yarn", label="yarn", target_context=target)
    requests = [
        ScalingRequest(scaling="none", label="none"),
        ScalingRequest(scaling="linear", label="linear", target_context=target),
        ScalingRequest(scaling="ntk", label="ntk", target_context=target),
        yarn,
    ]
    if keep_short:
        requests.append(replace(yarn, label="yarn, long factors only", keep_short_context=True))
    return tuple(requests)


def measure(plan: RunPlan, multiple: int) -> Iterator[Measured]:
    """Carry out `plan` in a folder of its own, and yield one result per method, cache and length.

    Raises ValueError where a cell has no result.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = run(plan, Path(folder) / "run")
    for row in report.summary:
        if row.scored < row.cells:
            raise ValueError(f"{row.scaling} at {row.context_tokens}: {row.scored} of {row.cells}")
        yield _measured(row, multiple)


def _measured(row: SummaryRow, multiple: int) -> Measured:
    recall, loss = row.metric("recall"), row.metric("log_probability")
    if recall is None or loss is None:
        raise ValueError(f"{row.scaling} at {row.context_tokens} tokens has no recall")
    share, low, high, nat = recall.value, recall.low, recall.high, loss.value
    if share is None or low is None or high is None or nat is None:
        raise ValueError(f"{row.scaling} at {row.context_tokens} tokens has no recall")
    return Measured(
        method=row.scaling,
        kv=row.kv,
        multiple=multiple,
        context_tokens=row.context_tokens,
        needles=row.scored,
        recall=share,
        recall_low=low,
        recall_high=high,
        log_probability=nat,
    )


def table(rows: Iterable[Measured], *, caches: bool) -> list[str]:
    """Return a table in Markdown, one line per row; with `caches`, of cache types."""
    what = "KV" if caches else "method"
    lines = [
        f"| target | {what} | prompt, tokens | recall (95 %) | nat/token |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.multiple}x | {row.kv if caches else row.method} | {row.context_tokens} | "
        f"{row.recall:.3f} ({row.recall_low:.3f}-{row.recall_high:.3f}) | "
        f"{row.log_probability:.3f} |"
        for row in rows
    ]
    return lines


def page(model: str, native: int, ranked: list[Measured], caches: list[Measured]) -> str:
    """Return both tables as a page for a reader."""
    how = "`python -m benchmarks.method_ranking`: a whole prompt per needle"
    lines = [
        f"# Methods and cache types on {model}, trained for {native} tokens",
        "",
        f"{how}, {ranked[0].needles} needles per row.",
        "",
        *table(ranked, caches=False),
        "",
        f"Cache types, under YaRN at {caches[0].multiple} times:",
        "",
        *table(caches, caches=True),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "fixtures" / "nano.gguf")
    parser.add_argument("--multiples", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--depths", type=int, default=11)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--haystack", choices=("noise", "essay"), default="noise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="where to write the result as JSON")
    given = parser.parse_args()
    metadata = read_model(given.model).metadata
    native = metadata.context_length
    if native is None:
        parser.error(f"{given.model} declares no context length")
    common = RunPlan(
        models=(str(given.model),),
        contexts=(native,),
        control=False,
        mode="whole",
        depths=given.depths,
        samples=given.samples,
        haystack=Haystack(kind=given.haystack),
        runtime=RuntimeSettings(gpu_layers=0, threads=given.threads),
    )
    ranked: list[Measured] = []
    for multiple in given.multiples:
        target = multiple * native
        requests = methods(target, keep_short=metadata.architecture in ("llama", "phi3"))
        ranked += measure(replace(common, contexts=(native, target), scalings=requests), multiple)
    multiple = given.multiples[min(1, len(given.multiples) - 1)]
    target = multiple * native
    yarn = ScalingRequest(scaling="yarn", label="yarn", target_context=target)
    kv = tuple(str(KvTypes(k=choice.k_type, v=choice.v_type)) for choice in CACHE_CHOICES)
    caches = list(measure(replace(common, contexts=(target,), scalings=(yarn,), kv=kv), multiple))
    text = page(given.model.stem, native, ranked, caches)
    print(text)
    if given.results is not None:
        plain = {
            "model": given.model.name,
            "trained_context": native,
            "depths": given.depths,
            "samples": given.samples,
            "methods": [asdict(row) for row in ranked],
            "caches": [asdict(row) for row in caches],
            "machine": {
                "threads": given.threads,
                "platform": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
                "llama_cpp_python": version("llama_cpp_python"),
            },
        }
        given.results.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        given.results.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
