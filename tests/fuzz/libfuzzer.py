"""Run the fuzz target of the reader under atheris: `pip install atheris`, then

python -m tests.fuzz.libfuzzer -max_total_time=600 NEW_INPUTS tests/fuzz/corpus
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ggufrope"]):
    from tests.fuzz.reader import one_input


def main() -> None:
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
