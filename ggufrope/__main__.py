"""`python -m ggufrope`: the command line, where it is installed."""

from __future__ import annotations

from ggufrope_cli.__main__ import start

if __name__ == "__main__":
    start()
