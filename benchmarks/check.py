"""Compare `ggufrope check` with gguf-dump on a folder of 100 files with 32768 tokens each.

python -m benchmarks.check [--folder DIR] [--runs N]

gguf-dump takes one file, so it is run on one and counted 100 times.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.measure import process, record, script
from benchmarks.models import make

FILES = 100
VOCABULARY = 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        first = make(folder / "000.gguf", data_bytes=64 << 20, sparse=True, vocabulary=VOCABULARY)
        header = first.read_bytes()[: 4 << 20]
        for number in range(1, FILES):
            with (folder / f"{number:03}.gguf").open("wb") as file:
                file.write(header)
                file.truncate(first.stat().st_size)
        ours = process([script("ggufrope"), "check", folder], runs=options.runs)
        one = process([script("ggufrope"), "check", first], runs=options.runs)
        theirs = process([script("gguf-dump"), first], runs=options.runs)
    record(
        "check",
        {
            f"ggufrope check, {FILES} files": ours,
            "ggufrope check, 1 file": one,
            "gguf-dump, 1 file": theirs,
            f"{FILES} files, times faster than gguf-dump on each": round(
                FILES * theirs.wall_seconds / ours.wall_seconds, 1
            ),
        },
    )


if __name__ == "__main__":
    main()
