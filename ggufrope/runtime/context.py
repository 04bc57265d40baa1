"""A context of a model: a trunk of tokens, and branches that leave it as it was.

The trunk is llama.cpp's sequence 0. A branch is a sequence that is forked from it and removed
again; `llama_memory_seq_cp` shares the KV cells and copies nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufrope.errors import (
    BackendError,
    DecodeError,
    InsufficientMemoryError,
    RequestError,
    UnsupportedCacheError,
)
from ggufrope.lm import AnswerScore, Branch, Progress, Splice, Tokens
from ggufrope.runtime import library, memory
from ggufrope.runtime.batch import Fork, Group, decode, log_probabilities_of, output_logits, plan
from ggufrope.runtime.loading import buffers, ran_out_of_memory
from ggufrope.runtime.settings import ContextSettings, context_parameters
from ggufrope.runtime.sizing import allocated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from ggufrope.runtime.model import Model

_TRUNK = 0
_LOGITS_BYTES = 256 * 1024 * 1024
_ANY = -1  # as a position, to llama_memory_seq_*: from the start, or to the end


class Context:
    """A trunk of tokens in a K/V cache; a `LanguageContext` as in `ggufrope.lm`.

    Open until `close`; also a context manager. A call that fails or is interrupted leaves the
    trunk at the end of a batch; `position` says where.
    """

    def __init__(self, model: Model, settings: ContextSettings) -> None:
        """Allocate the cache and the buffers.

        Raises UnsupportedCacheError for cache types that this model cannot run,
        InsufficientMemoryError where they do not fit, RequestError for numbers out of range,
        BackendError for anything else.
        """
        self._handle: Any = None
        self._library = library.load()
        refusal = memory.cache_refusal(
            model, settings.type_k, settings.type_v, flash_attention=settings.flash_attention
        )
        if refusal:
            raise UnsupportedCacheError(f"{model.path.name}: {refusal}")
        parameters = context_parameters(self._library, settings, n_seq_max=model.n_sequences)
        memory.require_fit(model, settings)
        with library.capture() as log:
            handle = self._library.llama_init_from_model(model.handle, parameters)
        if not handle:
            failure = InsufficientMemoryError if ran_out_of_memory(log) else BackendError
            raise failure(
                f"{model.path.name}: no context of {settings.n_ctx} tokens with K "
                f"{settings.type_k} and V {settings.type_v}: {log.reason or 'no reason given'}"
            )
        self._handle = handle
        self._memory = self._library.llama_get_memory(handle)
        self._position = 0
        self.model = model
        self.settings = settings
        self.cache = allocated(log)
        self.buffers = (*buffers(log, "KV"), *buffers(log, "compute"), *buffers(log, "output"))
        self.log = tuple(log.lines)
        model.adopt(self)

    def close(self) -> None:
        """Free the cache and buffers. Closing twice is fine."""
        if self._handle is not None:
            self._library.llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """The `llama_context *`, for the other modules of the runtime."""
        if self._handle is None:
            raise BackendError("the context was closed")
        return self._handle

    @property
    def position(self) -> int:
        """Tokens in the trunk."""
        return self._position

    @property
    def n_ctx(self) -> int:
        """Tokens the cache holds, as allocated."""
        return int(self._library.llama_n_ctx_seq(self.handle))

    @property
    def n_batch(self) -> int:
        """The most tokens that one call evaluates."""
        return int(self._library.llama_n_batch(self.handle))

    @property
    def n_sequences(self) -> int:
        """Sequences that it can hold at once, the trunk included."""
        return int(self._library.llama_n_seq_max(self.handle))

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of the K and V caches as allocated; None for a model without a cache."""
        return None if self.cache is None else self.cache.size_bytes

    @property
    def cache_rotated(self) -> bool | None:
        """Whether llama.cpp rotates K or V before it stores them.

        None for a model without a cache, or where llama.cpp's log does not say.
        """
        if self.cache is None:
            return None
        if self.cache.rotated_k is None or self.cache.rotated_v is None:
            return None
        return self.cache.rotated_k or self.cache.rotated_v

    # The trunk ----------------------------------------------------------------------------------

    def extend(self, tokens: Tokens, *, progress: Progress | None = None) -> None:
        """Append to the trunk without computing logits. Raises DecodeError."""
        for count in self._append(tokens, n_batch=self.n_batch, outputs=0):
            if progress is not None:
                progress(count)

    def logits(
        self, tokens: Tokens, *, skip: int = 0, progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Append to the trunk and yield logits: one array `[n, n_vocab]` per batch.

        There is one row per token, except for the first `skip` tokens. Those are in the same
        batches: on a CPU, flash attention calculates differently where a batch has fewer than 64
        tokens (ggml-cpu/common.h, GGML_FA_TILE_Q).

        An array is llama.cpp's own memory, valid until the next one is read.
        """
        n_batch = min(self.n_batch, max(1, _LOGITS_BYTES // (4 * self.model.n_vocab)))
        for count in self._append(tokens, n_batch=n_batch, outputs=max(len(tokens) - skip, 0)):
            if progress is not None:
                progress(count)
            rows, skip = max(count - skip, 0), max(skip - count, 0)
            if rows:
                yield output_logits(self.handle, rows, self.model.n_vocab)

    def rewind(self, position: int) -> None:
        """Remove the trunk's tokens from `position` on.

        Raises RequestError for a position beyond the trunk, DecodeError for one inside it where the
        trunk is `append_only`.
        """
        if not 0 <= position <= self._position:
            raise RequestError(
                f"cannot rewind to {position}: the trunk has {self._position} tokens"
            )
        if position == self._position:
            return
        if position > 0 and self.append_only:
            raise DecodeError(f"cannot rewind to {position}: {self.append_only}")
        if not self._library.llama_memory_seq_rm(self._memory, _TRUNK, position, _ANY):
            raise DecodeError(f"cannot rewind to {position}: llama.cpp refuses")
        self._position = position

    def _append(self, tokens: Tokens, *, n_batch: int, outputs: int) -> Iterator[int]:
        """Evaluate tokens after the trunk; yield the length of each batch done."""
        self._require_room(len(tokens))
        for count in self._run(_TRUNK, self._position, tokens, n_batch=n_batch, outputs=outputs):
            self._position += count
            yield count

    @property
    def append_only(self) -> str | None:
        """Why the trunk cannot be rewound and spliced; None where it can."""
        if self.model.has_state:
            return "the model keeps a recurrent state"
        if self.model.n_swa and not self.settings.swa_full:
            return "the cache keeps only the sliding window (swa_full is off)"
        return None

    @property
    def whole_only(self) -> str | None:
        """Why branches cannot have splices; None where they can."""
        return self.append_only

    # Branches -----------------------------------------------------------------------------------

    def score(self, branches: Sequence[Branch]) -> list[tuple[AnswerScore, ...]]:
        """Score every answer of every branch; leave the trunk as it was.

        Raises RequestError for an empty prompt or answer, DecodeError where one does not fit, and
        for splices where the trunk is `append_only`.
        """
        if self.append_only and any(branch.splices for branch in branches):
            raise DecodeError(f"nothing can be spliced into the trunk: {self.append_only}")
        groups = plan(
            branches,
            start=self._position,
            max_sequences=self.n_sequences - 1,
            max_cells=self.n_ctx - self._position,
        )
        scores: dict[tuple[int, int], AnswerScore] = {}
        for group in groups:
            for candidate, score in zip(group.candidates, self._evaluate(group), strict=True):
                scores[candidate.branch, candidate.answer] = score
        return [
            tuple(scores[index, answer] for answer in range(len(branch.answers)))
            for index, branch in enumerate(branches)
        ]

    def generate(self, prompt: Tokens, *, max_tokens: int) -> list[int]:
        """Return the greedy continuation of trunk + prompt; leave the trunk as it was.

        It ends before the end-of-generation token, or at the end of the context.
        """
        self._require_room(len(prompt))
        if not prompt:
            raise RequestError("generation needs a prompt of at least one token")
        answer: list[int] = []
        position, given = self._position, prompt
        with self._forked([Fork(splices=(), sequences=(1,))]):
            while len(answer) < max_tokens and position + len(given) <= self.n_ctx:
                for count in self._run(1, position, given, n_batch=self.n_batch, outputs=1):
                    position += count
                token = int(output_logits(self.handle, 1, self.model.n_vocab).argmax())
                if self.model.vocabulary.ends_generation(token):
                    break
                answer.append(token)
                given = [token]
        return answer

    def _evaluate(self, group: Group) -> Iterator[AnswerScore]:
        """Yield the scores of a group's candidates, in order."""
        entries = group.entries
        tokens = self._token_array([entry.token for entry in entries])
        positions = np.array([entry.position for entry in entries], dtype=np.int32)
        outputs = np.array([entry.output for entry in entries], dtype=np.int8)
        pairs = [zip(c.entries, c.tokens, strict=True) for c in group.candidates]
        read, target = np.array([pair for each in pairs for pair in each]).T
        values, greedy = np.empty(len(read)), np.empty(len(read), dtype=bool)
        with self._forked(group.forks):
            for start in range(0, len(entries), self.n_batch):
                batch = slice(start, start + self.n_batch)
                sequences = [entry.sequences for entry in entries[batch]]
                decode(self.handle, tokens[batch], positions[batch], sequences, outputs[batch])
                row = np.cumsum(outputs[batch]) - 1
                here = (start <= read) & (read < start + len(row))
                if here.any():
                    logits = output_logits(self.handle, int(row[-1]) + 1, self.model.n_vocab)
                    values[here], greedy[here] = log_probabilities_of(
                        logits, row[read[here] - start], target[here]
                    )
        end = 0
        for candidate in group.candidates:
            begin, end = end, end + len(candidate.tokens)
            yield AnswerScore(
                log_probabilities=tuple(values[begin:end].tolist()),
                greedy=bool(greedy[begin:end].all()),
            )

    @contextmanager
    def _forked(self, forks: Sequence[Fork]) -> Iterator[None]:
        """Give the sequences of `forks` the trunk with their splices, inside the block.

        A batch must continue its sequences, so the trunk's cells behind a splice are added when
        the splice is evaluated.
        """
        ends = {sequence: 0 for fork in forks for sequence in fork.sequences}

        def share(fork: Fork, end: int) -> None:
            begin = ends[fork.sequences[0]]
            for sequence in fork.sequences if begin != end else ():
                self._library.llama_memory_seq_cp(self._memory, _TRUNK, sequence, begin, end)

        try:
            for layer in zip_longest(*(fork.splices for fork in forks)):
                spliced = [
                    (fork, splice) for fork, splice in zip(forks, layer, strict=True) if splice
                ]
                for fork, splice in spliced:
                    share(fork, splice.position)
                    ends |= dict.fromkeys(fork.sequences, splice.end)
                self._evaluate_splices(spliced)
            for fork in forks:
                share(fork, _ANY)
            yield
        finally:
            for sequence in ends:
                self._library.llama_memory_seq_rm(self._memory, sequence, _ANY, _ANY)

    def _evaluate_splices(self, spliced: Sequence[tuple[Fork, Splice]]) -> None:
        """Evaluate one splice of each of several forks."""
        tokens = self._token_array([token for _, splice in spliced for token in splice.tokens])
        positions = [range(splice.position, splice.end) for _, splice in spliced]
        places = np.array([place for span in positions for place in span], dtype=np.int32)
        sequences = [fork.sequences for fork, splice in spliced for _ in splice.tokens]
        unread = np.zeros(len(tokens), dtype=np.int8)
        for start in range(0, len(tokens), self.n_batch):
            batch = slice(start, start + self.n_batch)
            decode(self.handle, tokens[batch], places[batch], sequences[batch], unread[batch])

    # Batches ------------------------------------------------------------------------------------

    def _run(
        self, sequence: int, position: int, tokens: Tokens, *, n_batch: int, outputs: int
    ) -> Iterator[int]:
        """Evaluate tokens of one sequence from `position` on; yield the length of each batch done.

        The last `outputs` of all tokens have logits. A batch that fails or is interrupted is
        removed from the cache.
        """
        given = self._token_array(tokens)
        wanted = np.zeros(len(given), dtype=np.int8)
        wanted[len(given) - min(outputs, len(given)) :] = 1
        for start in range(0, len(given), n_batch):
            batch = slice(start, start + n_batch)
            count = len(given[batch])
            at = position + start
            places = np.arange(at, at + count, dtype=np.int32)
            try:
                decode(self.handle, given[batch], places, [(sequence,)] * count, wanted[batch])
            except BaseException:
                self._library.llama_memory_seq_rm(self._memory, sequence, at, _ANY)
                raise
            yield count

    def _token_array(self, tokens: Tokens) -> NDArray[np.int32]:
        given = np.array(tokens, dtype=np.int32)
        outside = (given < 0) | (given >= self.model.n_vocab)
        if outside.any():
            raise RequestError(
                f"token {given[outside][0]} is not in the vocabulary of {self.model.n_vocab}"
            )
        return given

    def _require_room(self, count: int) -> None:
        if self._position + count > self.n_ctx:
            raise DecodeError(
                f"{count} tokens do not fit after {self._position}: the context holds "
                f"{self.n_ctx}; set n_ctx higher"
            )
