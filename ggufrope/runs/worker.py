"""A worker process: `python -m ggufrope.runs.worker`, started by the driver with JSON on argv.

It lives no longer than its parent: standard input is a pipe from it, and its end is the end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from ggufrope._plain import Plain, decode
from ggufrope.errors import GgufRopeError
from ggufrope.runs.driver import CANNOT_GO_ON, work
from ggufrope.runs.jobs import Selection
from ggufrope.runs.store import RunStore
from ggufrope.runs.subject import opener


def main(arguments: dict[str, Plain]) -> int:
    """Take part in the run that `arguments` name, until nothing is left; the exit status."""
    folder, name = Path(arguments["folder"]), arguments["worker"]
    threading.Thread(target=_die_with_parent, args=(folder, name), daemon=True).start()
    try:
        selection = decode(Selection, arguments["selection"])
        work(folder, opener(arguments["opener"]), selection=selection, worker=name)
    except GgufRopeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return CANNOT_GO_ON
    return 0


def _die_with_parent(folder: Path, worker: str) -> None:
    while os.read(0, 1):
        pass
    with RunStore(folder) as store:
        store.release(worker)
    os._exit(CANNOT_GO_ON)


if __name__ == "__main__":
    raise SystemExit(main(json.loads(sys.argv[1])))
