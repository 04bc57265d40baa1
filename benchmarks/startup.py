"""Compare short commands, as whole processes, with gguf-dump and gguf-new-metadata.

python -m benchmarks.startup [--before SCRIPT] [--folder DIR] [--runs N]

The model has a vocabulary of 262144 tokens. `--before` is the `ggufrope` script of another
checkout's environment, measured in turn with this one's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Cost, process, record, script
from benchmarks.models import make

SCALING = ("--scaling", "linear", "--factor", "2")
DATA_BYTES = 250 << 20
READER = "import sys; from ggufrope.container.reader import read_header; read_header(sys.argv[1])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = make(Path(name) / "model.gguf", data_bytes=DATA_BYTES)
        untouched = Path(shutil.copy(path, Path(name) / "untouched.gguf"))
        scripts = {"now": Path(script("ggufrope"))}
        if options.before is not None:
            scripts["before"] = options.before
        results: dict[str, Any] = {
            who: ours(program, path, untouched, options.runs) for who, program in scripts.items()
        }
        results |= {
            "read_header alone": process([sys.executable, "-c", READER, path], runs=options.runs),
            "an empty Python": process([sys.executable, "-c", "pass"], runs=options.runs),
        }
        peers = max(options.runs // 5, 1)
        dump = process([script("gguf-dump"), path], runs=peers)
        rewrite = process(
            [
                *(script("gguf-new-metadata"), "--force", "--general-name", "another"),
                *(untouched, Path(name) / "peer.gguf"),
            ],
            runs=peers,
        )
    results |= {"gguf-dump": dump, "gguf-new-metadata": rewrite}
    for who in scripts:
        inspect, patch = results[who]["inspect"], results[who]["patch --in-place"]
        results[f"{who}, times faster"] = {
            "inspect than gguf-dump": round(dump.wall_seconds / inspect.wall_seconds, 1),
            "patch than gguf-new-metadata": round(rewrite.wall_seconds / patch.wall_seconds, 1),
        }
    record("startup", results)


def ours(program: Path, path: Path, untouched: Path, runs: int) -> dict[str, Cost]:
    """Measure one version of the command line; `path` is put back before each edit."""

    def restore() -> None:
        for beside in path.parent.glob(f".{path.name}.*"):
            beside.unlink()
        shutil.copy(untouched, path)
        with path.open("rb") as file:  # a model on a disk has been there for a while
            os.fsync(file.fileno())

    return {
        "--version": process([program, "--version"], runs=runs),
        "inspect": process([program, "inspect", path], runs=runs),
        "patch --in-place": process(
            [program, "patch", path, "--in-place", *SCALING], runs=runs, before=restore
        ),
    }


if __name__ == "__main__":
    main()
