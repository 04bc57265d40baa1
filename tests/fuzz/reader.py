"""The fuzz target of the reader, and a small coverage-guided fuzzer to run it with.

    python -m tests.fuzz.reader --seconds 60
    python -m tests.fuzz.libfuzzer tests/fuzz/corpus    # the same target, with atheris

The built-in fuzzer mutates inputs and keeps those that take a new path through the reader; a path
is a pair of lines executed one after the other. The same seed gives the same run.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope.container import reader
from ggufrope.container.checks import layout_findings
from ggufrope.container.pieces import compose
from ggufrope.container.reader import parse_header
from ggufrope.container.types import Edits, Span, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import MalformedError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

CORPUS = Path(__file__).parent / "corpus"
MAX_INPUT = 4096
TRACED = {reader.__file__}

TOKENS = (
    b"GGUF",
    b"general.alignment",
    b"ggufrope.padding",
    *(struct.pack("<I", n) for n in (0, 1, 2, 3, 8, 9, 32)),
    *(struct.pack(">I", n) for n in (2, 3, 9, 32)),
    *(struct.pack("<Q", n) for n in (0, 1, 8, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)),
    struct.pack("<IQ", 9, 3),
    struct.pack(">Q", 1),
)

EDITS = Edits(set={"fuzz": TypedValue(type=ValueType.UINT32, value=1)})


def one_input(data: bytes) -> None:
    """Read one input. Any error but MalformedError is a bug; a rewrite must preserve the file."""
    try:
        header = parse_header(io.BytesIO(data), len(data))
    except MalformedError as error:
        if error.offset is None or not 0 <= error.offset <= len(data) or "\n" in str(error):
            raise AssertionError("not a proper error") from error
        return
    layout_findings(header)
    try:
        rewrite = plan_rewrite(header, Edits())
    except RequestError:
        return
    same = compose(rewrite, padding=rewrite.present_padding)
    assert materialized(same.pieces, data) == data
    assert same.data_offset == header.data_offset
    changed = compose(plan_rewrite(header, EDITS), padding=rewrite.present_padding)
    edited = materialized(changed.pieces, data)
    again = parse_header(io.BytesIO(edited), len(edited))
    assert again.get("fuzz") == 1
    assert edited[again.data_offset :] == data[header.data_offset :]


def materialized(pieces: Iterable[bytes | Span], data: bytes) -> bytes:
    return b"".join(
        data[piece.offset : piece.end] if isinstance(piece, Span) else piece for piece in pieces
    )


def seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


def fuzz(rounds: int, seed: int, *, until: float = float("inf")) -> tuple[int, list[bytes]]:
    """Run `rounds` mutated inputs, or until that monotonic time.

    Return how many paths were seen, and the inputs that found new ones.
    """
    chance = random.Random(seed)
    corpus = seeds()
    seen: set[tuple[str, int, int]] = set()
    for data in corpus:
        seen |= paths(data)
    found = []
    for _ in range(rounds):
        if time.monotonic() > until:
            break
        data = mutated(corpus, chance)
        new = paths(data) - seen
        if new:
            seen |= new
            corpus.append(data)
            found.append(data)
    return len(seen), found


def paths(data: bytes) -> set[tuple[str, int, int]]:
    """Return the pairs of lines of the reader that an input executes one after the other."""
    taken: set[tuple[str, int, int]] = set()

    def call(frame: FrameType, _event: str, _arg: object) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        name, last = frame.f_code.co_name, 0

        def line(inner: FrameType, event: str, _arg: object) -> Any:
            nonlocal last
            if event == "line":
                taken.add((name, last, inner.f_lineno))
                last = inner.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(call)
    try:
        one_input(data)
    finally:
        sys.settrace(before)
    return taken


def mutated(corpus: list[bytes], chance: random.Random) -> bytes:
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 2, 4, 8, 40)))
        action = chance.randrange(6)
        if action == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            data[at:end] = chance.randbytes(end - at)
        elif action == 2:
            token = chance.choice(TOKENS)
            data[at : at + len(token)] = token
        elif action == 3:
            data[at:at] = chance.choice(TOKENS)
        elif action == 4:
            del data[at:end]
        else:
            other = chance.choice(corpus)
            data[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data[:MAX_INPUT])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    count, found = fuzz(sys.maxsize, options.seed, until=started + options.seconds)
    sys.stdout.write(f"{count} paths, {len(found)} inputs beyond the corpus, no error escaped\n")


if __name__ == "__main__":
    main()
