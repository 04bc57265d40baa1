"""Check ggufrope on a machine with an NVIDIA GPU: one command, no network, no compiler.

    tools/gpu-check OUT [--build FOLDER]… [--source SOURCE] [--wheels DIR] [--model SMOLLM2.gguf]

FOLDER has the shared libraries of a build of llama.cpp, as `python -m tools.cuda_build build` makes
them; given twice, two builds are compared. Without it the installed llama-cpp-python is used.
SOURCE is the source package of llama-cpp-python, whole or reduced, where the package itself is not
installed. DIR has wheels to install first, for the check alone. CUDA's libraries are found in the
wheels of the installed Python too, as PyTorch brings them.

The GPU tests run, SmolLM2 answers needles with all layers on the card (8k as it is, 16k and 32k by
YaRN), every pair of some K and V cache types is timed, some with a cache of 32k tokens on a random
model of 8B shapes, and its layers and its cache are put on the GPU and off it. OUT gets
result.json, result.html and one log per phase. A phase that fails or takes too long is recorded,
and the next ones run; the exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tools.cuda_build import unpack
from tools.gpu_page import page
from tools.gpu_phases import Phase, PhaseError, Phases, cards

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("f16", "q8_0", "q5_1", "q4_0")
"""Cache types of K and of V whose pairs are timed."""
OFF_DEVICE = "f16/iq4_nl"
"""A pair that CUDA has no kernel for at all."""
OFF_TOKENS = 512
"""Its cache: in a long one it takes minutes."""
LARGE_PAIRS = ("f16", "q8_0", "q4_0", "q8_0/q4_0", "q5_1", "f16/q8_0")
"""Pairs that are timed on the random model; none of them leaves an NVIDIA GPU, which would take
minutes."""
_GGUFROPE = (sys.executable, "-m", "ggufrope_cli")
_ANSWERED = (0, 1, 5)
"""Exit codes with a result: fine, a check failed, and the runtime failed on all of it."""
_REPORT_SECONDS = 20.0
_PROMISED: dict[str, tuple[float, float]] = {
    "native": (0.6, 2.0),
    "plain": (0.6, 2.0),
    "converted": (0.2, 2.0),
    "cpu": (0.0, 0.3),
}
"""Shares of the decode speed of f16 that go with what doctor says of a pair: one that is converted
costs nearly nothing in a short cache, and half of the speed in a long one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Lengths in tokens and the random model; small ones are for a machine without a GPU.

    All time limits are `patience` times as long: such a machine may be busy with other work.
    """

    native: int
    needles: tuple[int, ...]
    timed: int
    full: int
    places: int
    shape: str
    threads: int | None = None
    patience: float = 1.0


GPU = Size(native=8192, needles=(16384, 32768), timed=8192, full=32768, places=2048, shape="8b")
CPU = Size(
    native=256,
    needles=(512,),
    timed=256,
    full=256,
    places=128,
    shape="tiny",
    threads=1,
    patience=5.0,
)


class GpuCheck:
    """The phases in their order. Each build has an environment of its own."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.out: Path = options.out
        self._size = CPU if options.cpu else GPU
        self.phases = Phases(self.out, minutes=options.minutes, patience=self._size.patience)
        self.result: dict[str, Any] = {
            "schema": 2,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "cpu_only": options.cpu,
            "builds": {},
            "needles": {},
            "speeds": [],
        }
        self._options = options
        self._work = work
        self._site = work / "site"
        self._builds: dict[str, Path | None] = names_of(options.build) or {"installed": None}
        self._build = next(iter(self._builds))
        self._smollm2 = work / "smollm2.gguf"
        self._random = work / f"random-{self._size.shape}.gguf"

    def run(self) -> bool:
        """Carry out every phase, write the results, and return whether none failed."""
        if self._options.cpu:
            self.phases.skip("card", "not looked at with --cpu")
        else:
            with self.phases.phase("card", seconds=60):
                self.result["cards"] = cards()
        self._packages()
        for name in self._builds:
            self._build = name
            self._doctor()
        self._build = next(iter(self._builds))
        self._tests()
        self._needles("none", (self._size.native,))
        self._needles("yarn", self._size.needles)
        for name in self._builds:
            self._build = name
            self._speeds(["/".join(pair) for pair in product(TYPES, repeat=2)])
        self._random_model()
        for name in self._builds:
            self._build = name
            self._full()
        self._build = next(iter(self._builds))
        self._places()
        self.result["phases"] = [asdict(phase) for phase in self.phases.done]
        text = json.dumps(self.result, indent=2)
        for name, build in self._builds.items():  # a result says nothing of the machine's folders
            text = text if build is None else text.replace(str(build), name)
        (self.out / "result.json").write_text(f"{text}\n")
        (self.out / "result.html").write_text(page(json.loads(text)), encoding="utf-8")
        return all(phase.status != "failed" for phase in self.phases.done)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands that use the current build."""
        variables = dict(os.environ)
        paths = [str(self._site), str(ROOT), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
        if (build := self._builds[self._build]) is not None:
            variables["LLAMA_CPP_LIB_PATH"] = str(build)
            wheels = {path.parent for each in sys.path for path in Path(each).glob(_CUDA_LIBRARY)}
            cuda = [*sorted(wheels), *filter(Path.is_dir, [_CUDA_TOOLKIT])]
            places = [str(build), *map(str, cuda), variables.get("LD_LIBRARY_PATH", "")]
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, places))
        return variables

    def _run(self, *command: str) -> str:
        return self.phases.run(command, environment=self.environment)

    def _ggufrope(self, *arguments: str, grace: float = 0.0) -> Any:
        """Run a command of ggufrope and return what its JSON says."""
        command = (*_GGUFROPE, *arguments, "--json")
        output = self.phases.run(
            command, environment=self.environment, allowed=_ANSWERED, grace=grace
        )
        return json.loads(output)

    def _measured(self, out: Path, *command: str) -> dict[str, Any]:
        """Run a command that stores its cells in `out`, and return the report of them.

        A command that fails or is stopped leaves cells too; "failure" then says why.
        """
        failure = None
        try:
            self._ggufrope(*command, "--out", str(out))
        except PhaseError as error:
            if not out.is_dir():
                raise
            failure = str(error)
        run: dict[str, Any] = self._ggufrope("report", str(out), grace=_REPORT_SECONDS)
        failed = [cell["reason"] for cell in run["cells"] if cell["status"] == "error"]
        if failed and failure is None:
            failure = f"{len(failed)} cells failed, the first: {failed[0]}"
        return run | {"failure": failure}

    def _packages(self) -> None:
        """Install what is missing: wheels, llama-cpp-python's own files, and this command line."""
        with self.phases.phase("packages", seconds=60):
            self._site.mkdir()
            (self._site / "ggufrope_cli").symlink_to(ROOT / "cli", target_is_directory=True)
            wheels = [] if self._options.wheels is None else self._options.wheels.glob("*.whl")
            if names := [str(wheel) for wheel in sorted(wheels)]:
                install = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps")
                self._run(*install, "--target", str(self._site), *names)
            if self._options.source is not None:
                folder = self._work / "source"
                folder.mkdir()
                package = unpack(self._options.source, folder) / "llama_cpp"
                shutil.copytree(
                    package, self._site / "llama_cpp", ignore=shutil.ignore_patterns("lib")
                )
            if not self._options.model.is_file():
                raise PhaseError(f"{self._options.model} does not exist; give it with --model")
            self._smollm2.symlink_to(self._options.model.resolve())

    def _doctor(self) -> None:
        """Record what each build is, and how it runs pairs of cache types on two sizes of heads."""
        with self.phases.phase(f"doctor {self._build}", seconds=60):
            doctor = self._ggufrope("doctor")
            small = self._ggufrope("doctor", "--model", str(self._smollm2))
            known = {"attention_of_smollm2": small["attention"], "caches": small["caches"]}
            self.result["builds"][self._build] = doctor | known
            if not (self._options.cpu or any(d["kind"] == "gpu" for d in doctor["devices"])):
                raise PhaseError("this build of llama.cpp finds no GPU")

    def _tests(self) -> None:
        with self.phases.phase("tests", seconds=150) as phase:
            stored = self.out / "tests.xml"
            pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q")
            where = ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"))
            try:
                tests = str(ROOT / "tests" / "gpu")
                self._run(*pytest, *where, "-k", "not rpc", f"--junitxml={stored}", tests)
            finally:
                if stored.is_file():
                    phase.details = tally(stored)

    def _needles(self, scaling: str, contexts: Sequence[int]) -> None:
        """Ask SmolLM2 for needles."""
        name = f"needles {scaling}"
        with self.phases.phase(name, seconds=100) as phase:
            lengths = ",".join(map(str, contexts))
            threads = ("--threads", str(self._size.threads)) if self._size.threads else ()
            run = self._measured(
                self.out / "run" / name.replace(" ", "-"),
                *("validate", str(self._smollm2), "--scaling", scaling, "--ctx", lengths),
                *("--depths", "11", "--whole-prompts", "20", "--no-control", *threads),
            )
            self.result["needles"][scaling] = {each: run[each] for each in ("verdict", "summary")}
            phase.details = {
                f"{metric} at {entry['context_tokens']}": round(
                    entry["metrics"][metric]["value"], 3
                )
                for entry in run["summary"]
                for metric in ("spliced_recall", "whole_recall")
                if metric in entry["metrics"]
            }
            _raise(run)

    def _speeds(self, pairs: Sequence[str]) -> None:
        """Time pairs of cache types on SmolLM2, by a run with the task kv-cache."""
        name = f"speeds of smollm2 {self._build}"
        with self.phases.phase(name, seconds=90) as phase:
            plan = self.out / f"{name.replace(' ', '-')}.toml"
            plan.write_text(plan_text(self._smollm2, pairs, self._size), encoding="utf-8")
            run = self._measured(self.out / "run" / plan.stem, "run", str(plan))
            rows = [cell_row(cell) for cell in run["cells"]]
            self._record(phase, self._smollm2, rows)
            _raise(run)

    def _full(self) -> None:
        """Time pairs of cache types on the random model, with the cache full."""
        with self.phases.phase(f"speeds of {self._random.stem} {self._build}", seconds=75) as phase:
            cases = [f"{kv}:{self._size.full}:all:gpu" for kv in LARGE_PAIRS]
            failure, rows = self._timed(phase, cases)
            self._record(phase, self._random, rows)
            _raise({"failure": failure})

    def _places(self) -> None:
        """Put the layers, the cache and the attention of the random model on the GPU and off it."""
        with self.phases.phase("places", seconds=90) as phase:
            places = product(("all", "0"), ("gpu", "cpu"))
            cases = [f"f16:{self._size.places}:{layers}:{cache}" for layers, cache in places]
            cases.append(f"{OFF_DEVICE}:{min(OFF_TOKENS, self._size.places)}:all:gpu")
            failure, self.result["places"] = self._timed(phase, cases)
            _raise({"failure": failure})

    def _timed(self, phase: Phase, cases: Sequence[str]) -> tuple[str | None, list[dict[str, Any]]]:
        """Return why not all cases of the random model were timed, and those that were."""
        out = self.out / f"{phase.name.replace(' ', '-')}.jsonl"
        failure = None
        try:
            command = (sys.executable, "-m", "tools.gpu_speeds")
            self._run(*command, str(self._random), str(out), *cases)
        except PhaseError as error:
            failure = str(error)
        lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
        return failure, [json.loads(line) for line in lines]

    def _record(self, phase: Phase, model: Path, rows: list[dict[str, Any]]) -> None:
        """Compare speeds with what `doctor` said of each pair, and keep them."""
        compare(rows, self._says(model))
        self.result["speeds"] += [{"build": self._build, "model": model.stem} | row for row in rows]
        unexpected = [row["kv"] for row in rows if row["unexpected"]]
        phase.details = {"pairs": len(rows), "unexpected": ", ".join(unexpected)}

    def _says(self, model: Path) -> dict[str, str]:
        """Return how the current build runs each pair on its GPU, as doctor said."""
        doctor = self.result["builds"].get(self._build, {})
        key = "attention_of_smollm2" if model == self._smollm2 else "attention"
        answers = doctor.get(key, ())
        device = next((a["device"] for a in answers if a["device"] != "CPU"), "CPU")
        return {f"{a['type_k']}/{a['type_v']}": a["runs"] for a in answers if a["device"] == device}

    def _random_model(self) -> None:
        with self.phases.phase("random model", seconds=90):
            command = (sys.executable, "-m", "tools.random_model")
            self._run(*command, str(self._random), self._size.shape)


_CUDA_LIBRARY = "nvidia/*/lib/lib*.so.*"
_CUDA_TOOLKIT = Path("/usr/local/cuda/lib64")


def names_of(builds: Sequence[Path]) -> dict[str, Path | None]:
    """Return the builds by name: that of the folder, or of the one above for "bin" and "lib"."""
    named: dict[str, Path | None] = {}
    for build in builds:
        folder = build.resolve()
        name = folder.parent.name if folder.name in ("bin", "lib") else folder.name
        named[name if name not in named else str(len(named))] = folder
    return named


def plan_text(model: Path, pairs: Sequence[str], size: Size) -> str:
    """Return the plan that times pairs of cache types."""
    settings = {
        "name": "speeds",
        "models": [str(model)],
        "contexts": [size.timed],
        "tasks": ["kv-cache"],
        "kv": list(pairs),
        "control": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    if size.threads:
        lines.append(f"runtime = {{ threads = {size.threads} }}")
    return "\n".join([*lines, ""])


def cell_row(cell: dict[str, Any]) -> dict[str, Any]:
    """Return the pair of a cell of a run, and its speeds."""
    kv = cell["cell"]["kv"]
    metrics = {name: each["value"] for name, each in cell["metrics"].items()}
    return {
        "kv": kv if "/" in kv else f"{kv}/{kv}",
        "reason": cell["reason"],
        "prefill": metrics.get("prefill_tokens_per_second"),
        "decode": metrics.get("decode_tokens_per_second"),
    }


def compare(rows: Sequence[dict[str, Any]], says: dict[str, str]) -> None:
    """Add to each row its share of the decode speed of f16, and what `says` about the pair; it is
    "unexpected" where that does not go with the share."""
    whole = next((row.get("decode") for row in rows if row["kv"] == "f16/f16"), None)
    for row in rows:
        share = row["decode"] / whole if whole and row.get("decode") else None
        row["share"] = None if share is None else round(share, 3)
        row["says"] = says.get(row["kv"])
        least, most = _PROMISED.get(row["says"] or "", (0.0, 2.0))
        row["unexpected"] = share is not None and not least <= share <= most


def _raise(run: dict[str, Any]) -> None:
    if run["failure"] is not None:
        raise PhaseError(run["failure"])


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
    """Parse the options."""
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the results; must not exist")
    parser.add_argument(
        "--build", type=Path, action="append", default=[], help="libraries of llama.cpp; repeatable"
    )
    parser.add_argument("--source", type=Path, help="source package of llama-cpp-python")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    smollm2 = ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--model", type=Path, default=smollm2, help="SmolLM2 (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=8, help="time limit for all phases (%(default)s)"
    )
    parser.add_argument("--cpu", action="store_true", help="need no GPU, and take tiny sizes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse_options(arguments)
    options.out.mkdir(parents=True, exist_ok=False)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        passed = GpuCheck(options, Path(work)).run()
    print(f"results: {options.out / 'result.json'} and {options.out / 'result.html'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
