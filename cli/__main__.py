"""The process of the `ggufrope` command, also `python -m ggufrope_cli`."""

from __future__ import annotations

import gc
import sys


def start() -> None:
    """Run the command line and end the process, which is hardly searched for garbage.

    Imports make many objects and drop few, and what is left at the end goes with the process: the
    searches would take a fifth of the time of a short command.
    """
    gc.set_threshold(50_000)
    try:
        from .app import main
    except KeyboardInterrupt:  # before there is anything else that answers it
        print("ggufrope: interrupted", file=sys.stderr)
        sys.exit(130)
    try:
        main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    start()
