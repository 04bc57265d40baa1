"""`inspect` of a file of 40 GB on a server that takes its time, and of the same file on disk.

python -m benchmarks.remote [--latency SECONDS] [--folder DIR] [--runs N]

The server is on this machine and waits before each answer, as a far one does. The model has a
vocabulary of 262144 tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.measure import process, record, script
from benchmarks.models import make
from ggufrope.container.reader import read_header
from tests.web import Virtual, serve

DATA_BYTES = 40 * 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, serve() as server:
        path = make(Path(folder) / "model.gguf", data_bytes=DATA_BYTES, sparse=True)
        header = read_header(path)
        with path.open("rb") as file:
            head = file.read(header.data_offset)

        def tag() -> str:
            time.sleep(options.latency)
            return '"one"'

        server.files["/model.gguf"] = Virtual(head=head, size=header.file_size)
        server.tag = tag
        command = [script("ggufrope"), "inspect", server.url("/model.gguf")]
        shown = subprocess.run([*command, "--json"], check=True, capture_output=True)
        (read,) = json.loads(shown.stdout)["remote"]
        record(
            "remote",
            {
                "file bytes": header.file_size,
                "header bytes": header.data_offset,
                "bytes read": read["bytes_read"],
                "requests": read["requests"],
                "seconds before each answer": options.latency,
                "inspect, on the server": process(command, runs=options.runs),
                "inspect, on disk": process([*command[:2], path], runs=options.runs),
            },
        )


if __name__ == "__main__":
    main()
