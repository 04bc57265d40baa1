"""Compare `ggufrope inspect` with gguf-dump, as processes, on a vocabulary of 262144 tokens.

python -m benchmarks.inspect [--folder DIR] [--runs N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import process, record, script
from benchmarks.models import make

READER = "import sys; from ggufrope.container.reader import read_header; read_header(sys.argv[1])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = make(Path(name) / "model.gguf", data_bytes=250 << 20)
        ours = process([script("ggufrope"), "inspect", path], runs=options.runs)
        reader = process([sys.executable, "-c", READER, path], runs=options.runs)
        bare = process([sys.executable, "-c", "pass"], runs=options.runs)
        theirs = process([script("gguf-dump"), path], runs=max(options.runs // 3, 1))
    record(
        "inspect",
        {
            "ggufrope inspect": ours,
            "read_header alone": reader,
            "an empty Python": bare,
            "gguf-dump": theirs,
            "inspect, times faster by the clock": round(theirs.wall_seconds / ours.wall_seconds, 1),
            "inspect, times less CPU": round(theirs.cpu_seconds / ours.cpu_seconds, 1),
            "read_header, times less CPU": round(theirs.cpu_seconds / reader.cpu_seconds, 1),
        },
    )


if __name__ == "__main__":
    main()
