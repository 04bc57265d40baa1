"""The process of the `ggufrope` command, also `python -m ggufrope_cli`."""

from __future__ import annotations

import gc


def start() -> None:
    """Run the command line and end the process, which is hardly searched for garbage.

    Imports make many objects and drop few, and what is left at the end goes with the process: the
    searches would take a fifth of the time of a short command.
    """
    gc.set_threshold(50_000)
    from .app import main

    try:
        main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    start()
