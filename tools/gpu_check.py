"""Check ggufrope on a machine with an NVIDIA GPU: one command, no network.

    tools/gpu-check OUT --source SOURCE [--wheels DIR] [--model SMOLLM2.gguf]

SOURCE is the source package of llama-cpp-python, or the 3 MB that `python -m tools.cuda_build`
makes of it. It is built for the GPU of this machine. Then the GPU tests run, and a matrix of KV
cache types and context lengths on SmolLM2 (YaRN) and on a model of 8B shapes with random weights.
OUT gets result.json, result.html and one log per phase. A phase that fails is recorded, and the
next ones run; the exit code is 1 if any failed.

The machine needs Python, a C++ compiler, CMake and the CUDA compiler. The Python packages that
ggufrope and llama-cpp-python import (gguf, numpy, rich, typer, jinja2, diskcache,
scipy, vl-convert-python, pytest, pytest-timeout) are installed there, or are wheels in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from tools.cuda_build import build, unpack
from tools.gpu_page import page
from tools.gpu_phases import PhaseError, Phases, cards

ROOT = Path(__file__).resolve().parent.parent
CONTEXTS = (8192, 16384, 32768, 65536, 131072)
QUICK_CONTEXTS = (8192, 16384)
CPU_CONTEXTS = (256, 512)
CACHES = ("f16", "q8_0", "q4_0")
_GGUFROPE = (sys.executable, "-c", "from ggufrope_cli.app import main; main()")
_CHECK_FAILED = 1


class GpuCheck:
    """The phases in their order, which share one environment."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.out: Path = options.out
        self.phases = Phases(self.out, minutes=options.minutes)
        self.result: dict[str, object] = {
            "schema": 1,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "cpu_only": options.cpu,
        }
        self._options = options
        self._work = work
        self._site = work / "site"
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(self._paths())}
        self._architecture: str | None = None
        self._models: list[Path] = []
        self._run_page: str | None = None

    def run(self) -> bool:
        """Carry out every phase, write the results, and return whether none failed."""
        if self._options.cpu:
            for name in ("card", "build"):
                self.phases.skip(name, "not run with --cpu")
        else:
            self._card()
            self._packages()
            self._build()
        self._doctor()
        self._tests()
        self._smollm2()
        self._random_model()
        self._matrix()
        self._report()
        self.result["phases"] = [asdict(phase) for phase in self.phases.done]
        (self.out / "result.json").write_text(json.dumps(self.result, indent=2) + "\n")
        (self.out / "result.html").write_text(page(self.result, self._run_page), encoding="utf-8")
        return all(phase.status != "failed" for phase in self.phases.done)

    def _paths(self) -> list[str]:
        own = [] if self._options.cpu else [str(self._site)]
        return [*own, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]

    def _run(self, *command: str, allowed: Sequence[int] = (0,)) -> str:
        return self.phases.run(command, environment=self.environment, allowed=allowed)

    def _ggufrope(self, *arguments: str, allowed: Sequence[int] = (0,)) -> str:
        return self._run(*_GGUFROPE, *arguments, allowed=allowed)

    def _card(self) -> None:
        with self.phases.phase("card"):
            found = cards()
            self.result["cards"] = [asdict(card) for card in found]
            self._architecture = found[0].architecture
            self.result["cuda_compiler"] = self._run("nvcc", "--version").splitlines()[-1]

    def _packages(self) -> None:
        """Install the wheels of DIR, and the command line of this checkout under its own name."""
        with self.phases.phase("packages"):
            self._site.mkdir()
            (self._site / "ggufrope_cli").symlink_to(ROOT / "cli", target_is_directory=True)
            wheels = [] if self._options.wheels is None else self._options.wheels.glob("*.whl")
            if names := [str(wheel) for wheel in sorted(wheels)]:
                install = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps")
                self._run(*install, "--target", str(self._site), *names)

    def _build(self) -> None:
        with self.phases.phase("build") as phase:
            if self._architecture is None:
                raise PhaseError("no GPU to build for")
            if self._options.source is None:
                raise PhaseError("missing --source: the source package of llama-cpp-python")
            folder = self._work / "source"
            folder.mkdir()
            jobs = os.cpu_count() or 1
            phase.details = {"architecture": self._architecture, "jobs": jobs}
            build(
                unpack(self._options.source, folder),
                self._site,
                architecture=self._architecture,
                jobs=jobs,
                defines=self._options.define,
                run=lambda command: self._run(*command),
            )

    def _doctor(self) -> None:
        with self.phases.phase("doctor"):
            doctor = json.loads(self._ggufrope("doctor", "--json"))
            self.result["doctor"] = doctor
            if not (doctor["can_offload"] or self._options.cpu):
                raise PhaseError("this build of llama.cpp cannot use a GPU")

    def _tests(self) -> None:
        with self.phases.phase("tests") as phase:
            stored = self.out / "tests.xml"
            pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q")
            where = ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"))
            try:
                tests = str(ROOT / "tests" / "gpu")
                self._run(*pytest, *where, f"--junitxml={stored}", tests)
            finally:
                if stored.is_file():
                    phase.details = tally(stored)

    def _smollm2(self) -> None:
        with self.phases.phase("smollm2"):
            model: Path = self._options.model
            if not model.is_file():
                raise PhaseError(f"{model} does not exist; give the file with --model")
            link = self._work / "smollm2.gguf"
            link.symlink_to(model.resolve())
            self._models.append(link)

    def _random_model(self) -> None:
        with self.phases.phase("random model"):
            path = self._work / f"random-{self._options.shape}.gguf"
            self._run(sys.executable, "-m", "tools.random_model", str(path), self._options.shape)
            self._models.append(path)

    def _matrix(self) -> None:
        """Measure all models in one run, with one phase per model, so that each can fail alone."""
        plan = self.out / "plan.toml"
        plan.write_text(plan_text(self._models, self._options.contexts), encoding="utf-8")
        for model in self._models:
            with self.phases.phase(f"matrix of {model.stem}"):
                where = ("--out", str(self.out / "run"))
                only = ("--only", f"model={model.stem}")
                self._ggufrope("run", str(plan), *where, *only, allowed=(0, _CHECK_FAILED))

    def _report(self) -> None:
        with self.phases.phase("report"):
            folder = str(self.out / "run")
            output = self._ggufrope("report", folder, "--json", allowed=(0, _CHECK_FAILED))
            self.result["run"] = run = json.loads(output)
            written = self._work / "run.html"
            self._ggufrope("report", folder, "--html", str(written))
            self._run_page = written.read_text(encoding="utf-8")
            failed = [cell["reason"] for cell in run["cells"] if cell["status"] == "error"]
            if failed:
                raise PhaseError(f"{len(failed)} cells failed, the first: {failed[0]}")


def plan_text(models: Sequence[Path], contexts: Sequence[int]) -> str:
    """Return the plan: speeds at every length, and a needle, for which the whole length is read."""
    settings = {
        "name": "gpu-check",
        "models": [str(model) for model in models],
        "contexts": list(contexts),
        "tasks": ["kv-cache", "needle"],
        "scalings": ["yarn"],
        "kv": list(CACHES),
        "depths": [50.0],
        "control": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join([*lines, "[thresholds]", "recall = 0.0", ""])


def tally(junit: Path) -> dict[str, object]:
    """Return the counts of a JUnit file of pytest, and why tests were skipped or failed."""
    cases = list(ElementTree.parse(junit).iter("testcase"))
    ended = {
        kind: [found.get("message", "") for case in cases for found in case.findall(kind)]
        for kind in ("failure", "error", "skipped")
    }
    return {
        "passed": len(cases) - sum(map(len, ended.values())),
        **{kind: len(messages) for kind, messages in ended.items()},
        "reasons": sorted({message for messages in ended.values() for message in messages}),
    }


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options, and fill in the contexts and the shape."""
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the results; must not exist")
    parser.add_argument("--source", type=Path, help="source package of llama-cpp-python")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument(
        "--define",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further setting for CMake",
    )
    smollm2 = ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--model", type=Path, default=smollm2, help="SmolLM2 (%(default)s)")
    parser.add_argument("--shape", choices=("8b", "tiny"), help="shape of the random model (8b)")
    parser.add_argument("--contexts", type=_lengths, help="context lengths, as in 8k,32k,128k")
    parser.add_argument("--quick", action="store_true", help="8k and 16k only")
    parser.add_argument(
        "--minutes", type=float, default=60, help="time limit for all phases (%(default)s)"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="build nothing; use what is installed, with tiny sizes"
    )
    options = parser.parse_args(arguments)
    usual = CPU_CONTEXTS if options.cpu else QUICK_CONTEXTS if options.quick else CONTEXTS
    options.contexts = options.contexts or usual
    options.shape = options.shape or ("tiny" if options.cpu else "8b")
    return options


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(
        int(word[:-1]) * 1024 if word.endswith("k") else int(word) for word in text.split(",")
    )


def main(arguments: Sequence[str]) -> int:
    options = parse_options(arguments)
    options.out.mkdir(parents=True, exist_ok=False)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        passed = GpuCheck(options, Path(work)).run()
    print(f"results: {options.out / 'result.json'} and {options.out / 'result.html'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
