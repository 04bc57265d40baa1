"""Reads values from a binary stream, in either byte order, and never past its end."""

from __future__ import annotations

import struct
from struct import Struct
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from ggufrope.container.types import ValueType
from ggufrope.errors import MalformedError

if TYPE_CHECKING:
    from ggufrope.container.types import ByteOrder

MAX_WALKED_ITEMS = 1 << 24
"""Strings and nested arrays in one header: sixty times the largest vocabulary there is."""

_CHUNK = 1 << 18

CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""`struct` codes of the types of fixed size."""


class Cursor:
    """Reads forward through a stream by a window, and never past the end of the file."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._base = 0
        self._window = b""
        self._at = 0
        self._walked = 0
        self.use_byte_order("<")

    def use_byte_order(self, order: ByteOrder) -> None:
        self.order: ByteOrder = order
        self.u32 = Struct(order + "I")
        self.u64 = Struct(order + "Q")
        self.formats = {kind: Struct(order + code) for kind, code in CODES.items()}

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def remaining(self) -> int:
        return self._size - self.position

    def fail(self, message: str, *, offset: int | None = None) -> NoReturn:
        raise MalformedError(message, offset=self.position if offset is None else offset)

    def take(self, length: int, what: str) -> bytes:
        """The next `length` bytes; `what` names them should they be missing."""
        end = self._at + length
        if end > len(self._window):
            self._fill(length, what)
            end = length
        piece = self._window[self._at : end]
        self._at = end
        return piece

    def unpack(self, format_: Struct, what: str) -> int:
        at = self._at
        if at + format_.size > len(self._window):
            self._fill(format_.size, what)
            at = 0
        self._at = at + format_.size
        value: int = format_.unpack_from(self._window, at)[0]
        return value

    def skip(self, length: int, what: str) -> None:
        if length > self.remaining:
            self.fail(f"{what} of {length} bytes runs past the end of the file")
        self._at += length
        if self._at > len(self._window):
            self._base, self._at, self._window = self.position, 0, b""

    def walk(self, count: int, what: str) -> None:
        """Accounts for `count` items that must be visited one by one."""
        self._walked += count
        if self._walked > MAX_WALKED_ITEMS:
            self.fail(f"{what} takes the header past {MAX_WALKED_ITEMS} strings and arrays")

    def skip_strings(self, count: int, what: str) -> None:
        """Skips `count` length-prefixed strings. The inner loop is the cost of a big vocabulary."""
        start = self.position
        unpack = self.u64.unpack_from
        while count:
            window, at = self._window, self._at
            try:
                for count in range(count, 0, -1):  # noqa: B007, B020 - what is left at the stop
                    (length,) = unpack(window, at)
                    at += 8 + length
                count = 0
            except (struct.error, OverflowError):  # the window ends, or the length is absurd
                pass
            if self._base + at > self._size:
                self.fail(f"a string of {what} runs past the end of the file", offset=start)
            self._at = at
            if at > len(window):
                self._base, self._at, self._window = self.position, 0, b""
            if count:
                self._fill(8, what)

    def _fill(self, length: int, what: str) -> None:
        """Moves the window so that it begins here and holds at least `length` bytes."""
        if length > self.remaining:
            self.fail(f"the file ends inside {what}: {length} bytes needed, {self.remaining} left")
        self._base = self.position
        self._stream.seek(self._base)
        wanted = min(max(length, _CHUNK), self._size - self._base)
        pieces = []
        while wanted:
            piece = self._stream.read(wanted)
            if not piece:
                break
            pieces.append(piece)
            wanted -= len(piece)
        self._window, self._at = b"".join(pieces), 0
        if len(self._window) < length:
            self.fail(f"the file became shorter while reading {what}")
