"""The tokenizer inside a model."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ggufrope.runtime import library

if TYPE_CHECKING:
    from ggufrope.runtime.branch import Tokens

_ANCHOR = "\n"


class Vocabulary:
    """Text to tokens and back, for as long as the model that owns it is open."""

    def __init__(self, model_handle: Any) -> None:
        self._library = library.load()
        self._handle = self._library.llama_model_get_vocab(model_handle)

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return int(self._library.llama_vocab_n_tokens(self._handle))

    @property
    def bos(self) -> int | None:
        """The token that begins a text, where the vocabulary adds one."""
        if not self._library.llama_vocab_get_add_bos(self._handle):
            return None
        return int(self._library.llama_vocab_bos(self._handle))

    def ends_generation(self, token: int) -> bool:
        """Whether the model says with `token` that it is done."""
        return bool(self._library.llama_vocab_is_eog(self._handle, token))

    def tokenize(self, text: str, *, beginning: bool) -> list[int]:
        """Tokens of plain text, special tokens in it left as text: at the `beginning`, BOS and a
        space before it where the vocabulary adds them, else as the text stands after other text."""
        if beginning:
            return ([] if self.bos is None else [self.bos]) + self._tokenize(text)
        # The space that SentencePiece vocabularies put before a text goes before the anchor.
        anchored = self._tokenize(_ANCHOR + text)
        if anchored[: len(self._anchor)] == self._anchor:
            return anchored[len(self._anchor) :]
        return self._tokenize(text)

    def detokenize(self, tokens: Tokens) -> str:
        """Text of tokens, special ones spelled out, every leading space kept."""
        return b"".join(map(self._piece, tokens)).decode("utf-8", "replace")

    @cached_property
    def _anchor(self) -> list[int]:
        return self._tokenize(_ANCHOR)

    def _tokenize(self, text: str) -> list[int]:
        if not text:
            return []
        encoded = text.encode("utf-8", "surrogateescape")
        capacity = len(encoded) + 2
        while True:
            tokens = (ctypes.c_int32 * capacity)()
            count = self._library.llama_tokenize(
                self._handle, encoded, len(encoded), tokens, capacity, False, False
            )
            if count >= 0:
                return list(tokens[:count])
            capacity = -count

    def _piece(self, token: int) -> bytes:
        capacity = 64
        while True:
            piece = ctypes.create_string_buffer(capacity)
            length = self._library.llama_token_to_piece(
                self._handle, token, piece, capacity, 0, True
            )
            if length >= 0:
                return piece.raw[:length]
            capacity = -length
