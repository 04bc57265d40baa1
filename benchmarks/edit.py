"""Compare the cost of an edit with that of the tools that people use for it today.

    python -m benchmarks.edit [--folder DIR] [--runs N]

Write files of 250 MB, 1 GB and, sparse, 16 GB into DIR, each with a vocabulary of 262144 tokens,
and measure: a patch in place and gguf-new-metadata; bytes written and the size of the header; the
16 GB file and the small one; a streamed copy and cp; peak memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from benchmarks.measure import call, process, record, script
from benchmarks.models import make
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import RequestError

SCALING = {
    "llama.rope.scaling.type": TypedValue(type=ValueType.STRING, value="yarn"),
    "llama.rope.scaling.factor": TypedValue(type=ValueType.FLOAT32, value=4.0),
}


ENGINE = """
import sys
from ggufrope.container.reader import read_header
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
path = sys.argv[1]
value = TypedValue(type=ValueType.STRING, value="yarn")
edits = Edits(set={"llama.rope.scaling.type": value})
execute(plan_store(path, plan_rewrite(read_header(path), edits)))
"""


def patch(path: Path) -> None:
    execute(plan_store(path, plan_rewrite(read_header(path), Edits(set=SCALING))))


def in_place(path: Path, runs: int) -> dict[str, object]:
    """Add two keys, which makes the header longer; measure whole processes on both sides."""
    output = path.with_suffix(".peer")
    options = ["--scaling", "linear", "--factor", "2"]
    ours = process(
        [script("ggufrope"), "patch", path, "--in-place", *options],
        runs=runs,
        before=lambda: restore(path),
    )
    restore(path)
    engine = process(
        [sys.executable, "-c", ENGINE, path],
        runs=runs,
        before=lambda: restore(path),
    )
    restore(path)
    peer: list[str | Path] = [
        script("gguf-new-metadata"),
        "--force",
        "--general-description",
        "patched",
        path,
        output,
    ]
    theirs = process(peer, runs=max(runs // 3, 1))
    output.unlink()
    return {
        "ggufrope patch --in-place": ours,
        "the engine alone": engine,
        "gguf-new-metadata": theirs,
        "times faster by the clock": round(theirs.wall_seconds / ours.wall_seconds, 1),
        "times less CPU": round(theirs.cpu_seconds / ours.cpu_seconds, 1),
        "engine, times faster by the clock": round(theirs.wall_seconds / engine.wall_seconds, 1),
        "engine, times less CPU": round(theirs.cpu_seconds / engine.cpu_seconds, 1),
    }


def restore(path: Path) -> None:
    """Undo the edit of the last round, where there was one."""
    with suppress(RequestError):
        undo(path)


def written(path: Path) -> dict[str, object]:
    header = read_header(path)
    found: dict[str, object] = {"header bytes": header.data_offset}
    for strategy in (None, Strategy.STREAM):
        made = plan_store(path, plan_rewrite(header, Edits(set=SCALING)), strategy=strategy)
        found[f"{made.strategy.value}: bytes written"] = made.bytes_written
        found[f"{made.strategy.value}: bytes journaled"] = made.bytes_journaled
    return found


def sparse(small: Path, large: Path, runs: int) -> dict[str, object]:
    first = call(lambda: patch(small), runs=runs, before=lambda: restore(small))
    second = call(lambda: patch(large), runs=runs, before=lambda: restore(large))
    restore(small)
    restore(large)
    return {
        f"{small.stat().st_size >> 20} MiB": first,
        f"{large.stat().st_size >> 20} MiB": second,
        "times as long": round(second.wall_seconds / first.wall_seconds, 2),
    }


def streamed(path: Path, runs: int) -> dict[str, object]:
    """Measure two durable copies: cp and sync, and ours, which is synced before it is renamed."""
    output = path.with_suffix(".out")
    rewrite = plan_rewrite(read_header(path), Edits(set=SCALING))

    def copy() -> None:
        execute(plan_store(path, rewrite, output=output, strategy=Strategy.STREAM))

    def gone() -> None:
        output.unlink(missing_ok=True)

    shell: list[str | Path] = [
        "sh",
        "-c",
        'cp --reflink=never "$0" "$1" && sync "$1"',
        path,
        output,
    ]
    ours, theirs = [], []
    for _ in range(runs):  # in turns, so that both see the same disk
        ours.append(call(copy, runs=1, before=gone))
        theirs.append(process(shell, runs=1, before=gone))
    gone()
    best, peer = (min(costs, key=lambda cost: cost.wall_seconds) for costs in (ours, theirs))
    return {
        "streamed copy, best": best,
        "cp and sync, best": peer,
        "times as long as cp and sync": round(best.wall_seconds / peer.wall_seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        small = make(Path(name) / "small.gguf", data_bytes=250 << 20)
        medium = make(Path(name) / "medium.gguf", data_bytes=1 << 30)
        large = make(Path(name) / "large.gguf", data_bytes=16 << 30, sparse=True)
        record(
            "edit",
            {
                "in place": in_place(small, options.runs),
                "written": written(small),
                "16 GB": sparse(small, large, options.runs),
                "copy of 1 GB": streamed(medium, options.runs),
            },
        )


if __name__ == "__main__":
    main()
