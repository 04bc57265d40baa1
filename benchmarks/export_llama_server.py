"""Run exported commands in a real llama-server, and record the context that each serves.

    python -m benchmarks.export_llama_server SERVER [MODEL.gguf]

SERVER is a llama-server of the llama.cpp that the package describes (target `llama-server` of its
source distribution). Each export is run as printed, on loopback, and `/props` says what a slot has.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import RESULTS
from ggufrope.errors import RequestError
from ggufrope.patching.exporting import export_model
from ggufrope.patching.inspection import read_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.architectures import source

PORT = 18977
SECONDS = 60
SCHEMES = ("none", "linear", "ntk", "dynamic-ntk", "ntk-by-parts", "yarn", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One command as it was run: what it wants, and what the server then serves, in tokens."""

    name: str
    text: str
    wanted: int
    served: int | str
    lost: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", type=Path)
    parser.add_argument("model", type=Path, nargs="?", default=Path("fixtures/nano.gguf"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = list(carried_out(options.server, options.model, Path(folder)))
    path = RESULTS / "export_llama_server.md"
    path.write_text(page(options.model, trials), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    wrong = [trial.name for trial in trials if trial.served != trial.wanted]
    if wrong:
        raise SystemExit(f"served another context than wanted: {', '.join(wrong)}")


def requests(target: int) -> Iterator[ScalingRequest]:
    """Yield every scaling to try."""
    for scheme in SCHEMES:
        yield ScalingRequest(scaling=scheme, target_context=target)  # type: ignore[arg-type]
    yield ScalingRequest(scaling="yarn", factor=3.0)
    yield ScalingRequest(scaling="yarn", factor=7.0)
    yield ScalingRequest(scaling="yarn", target_context=target, attn_factor=1.1)
    yield ScalingRequest(scaling="yarn", target_context=target, beta_fast=16.0, freq_base=20000.0)


def carried_out(server: Path, model: Path, folder: Path) -> Iterator[Trial]:
    """Yield each export of `model` and of patched copies of it, run by `server`."""
    own = read_model(model).metadata.context_length or 0
    yield trial(server, "the file as it is", model, None, own)
    yield trial(server, "the file, at 4 times its context", model, None, 4 * own)
    for number, request in enumerate(requests(8 * own)):
        reach = request.target_context or round(own * (request.factor or 1))
        beside = {"attn_factor": request.attn_factor, "beta_fast": request.beta_fast}
        words = [f"{name} {value:g}" for name, value in beside.items() if value is not None]
        name = ", ".join((request.name, *words))
        yield trial(server, name, model, request, reach)
        copy = folder / f"{model.stem}-{number}.gguf"
        try:
            apply(plan_patch(model, request, output=copy))
        except RequestError as error:
            print(f"{name}: not patched: {error}")
            continue
        yield trial(server, f"{name}, in a patched file", copy, None, reach)


def trial(
    server: Path, name: str, model: Path, request: ScalingRequest | None, wanted: int
) -> Trial:
    """Run one export."""
    length = wanted if request is None else None
    made = export_model(model, "llama-server", request=request, context_tokens=length)
    return Trial(
        name=name,
        text=made.text.replace(str(model), model.name),
        wanted=wanted,
        served=served(server, shlex.split(made.text)[1:]),
        lost="; ".join(made.inexpressible).partition(";")[0],
    )


def served(server: Path, arguments: list[str]) -> int | str:
    """Return n_ctx of a slot as a running server reports it, or how the server ended."""
    command = [str(server), *arguments, "--host", "127.0.0.1", "--port", str(PORT), "-np", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return f"exit {process.returncode}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/props", timeout=5) as answer:
                    return int(json.load(answer)["default_generation_settings"]["n_ctx"])
            except (urllib.error.URLError, OSError, KeyError):
                time.sleep(0.1)
        return "no answer"
    finally:
        process.kill()
        process.wait()


def page(model: Path, trials: list[Trial]) -> str:
    """Return the results as a page."""
    right = sum(trial.served == trial.wanted for trial in trials)
    said = (
        f"`python -m benchmarks.export_llama_server SERVER`: llama-server of {source().commit[:9]} "
        f"({source().package}), {model.name}. Each command was run as printed, but for the port. "
        f"{right} of {len(trials)} serve the context wanted."
    )
    lines = [
        "# Exported commands in a real llama-server",
        "",
        said,
        "",
        "| scaling | tokens wanted | served (`/props` n_ctx) | command | not expressed |",
        "|---|---:|---:|---|---|",
    ]
    lines += [f"| {t.name} | {t.wanted} | {t.served} | `{t.text}` | {t.lost} |" for t in trials]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
