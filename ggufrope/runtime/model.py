"""A loaded model: its weights and its tokenizer, shared by any number of contexts."""

from __future__ import annotations

import atexit
import ctypes
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ggufrope.container.reader import read_header
from ggufrope.errors import BackendError, LoadError
from ggufrope.rope.metadata import read_metadata
from ggufrope.rope.purpose import Purpose, purpose
from ggufrope.runtime import library
from ggufrope.runtime import rpc as servers
from ggufrope.runtime.loading import Buffer, LoadOptions, buffers, layer_devices, load
from ggufrope.runtime.placement import require_weights_fit
from ggufrope.runtime.settings import SEQUENCES, SEQUENCES_WITH_STATE
from ggufrope.runtime.sizing import size_context

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

    from ggufrope.lm import Tokens
    from ggufrope.runtime.library import Log
    from ggufrope.runtime.loading import LoadProgress, OverrideValue
    from ggufrope.runtime.settings import ContextSettings
    from ggufrope.runtime.sizing import ContextSize

_ANCHOR = "\n"
_open: weakref.WeakSet[Model] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what is left open while llama.cpp can still call back.

    Later its log would end the thread that calls, and another that waits for it would never end.
    """
    for model in tuple(_open):
        model.close()


class Vocabulary:
    """The tokenizer of a model, usable as long as the model is open."""

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
        """Return whether `token` ends a generation."""
        return bool(self._library.llama_vocab_is_eog(self._handle, token))

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of BOS and EOS, as `bos_token` and `eos_token`, where there are such tokens."""
        tokens = {
            "bos_token": int(self._library.llama_vocab_bos(self._handle)),
            "eos_token": int(self._library.llama_vocab_eos(self._handle)),
        }
        return {name: self.detokenize([token]) for name, token in tokens.items() if token >= 0}

    def tokenize(self, text: str, *, beginning: bool, special: bool = False) -> list[int]:
        """Return the tokens of a text. Special tokens in it are left as text unless `special`.

        With `beginning`, BOS and a space precede it where the vocabulary adds them; else the
        tokens are those of the text after other text.
        """
        if beginning:
            return ([] if self.bos is None else [self.bos]) + self._tokenize(text, special)
        # SentencePiece vocabularies put a space before a text; here it goes before the anchor.
        anchored = self._tokenize(_ANCHOR + text, special)
        if anchored[: len(self._anchor)] == self._anchor:
            return anchored[len(self._anchor) :]
        return self._tokenize(text, special)

    def detokenize(self, tokens: Tokens) -> str:
        """Return the text of tokens, special ones spelled out, leading spaces kept."""
        return b"".join(map(self._piece, tokens)).decode("utf-8", "replace")

    @cached_property
    def _anchor(self) -> list[int]:
        return self._tokenize(_ANCHOR, False)

    def _tokenize(self, text: str, special: bool) -> list[int]:
        if not text:
            return []
        if not self._library.llama_vocab_type(self._handle):
            raise BackendError("the model has no vocabulary: it cannot tokenize a text")
        encoded = text.encode("utf-8", "surrogateescape")
        capacity = len(encoded) + 2
        while True:
            tokens = (ctypes.c_int32 * capacity)()
            count = self._library.llama_tokenize(
                self._handle, encoded, len(encoded), tokens, capacity, False, special
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The devices that the weights are on.

    `layer_devices` is the device that each layer is assigned to, the output as the last layer;
    empty where llama.cpp's log does not say. `buffers` are the weights themselves.
    """

    layer_devices: tuple[str, ...]
    buffers: tuple[Buffer, ...]

    @property
    def layers(self) -> int:
        """Layers, the output counted."""
        return len(self.layer_devices)

    @property
    def layers_on_gpu(self) -> int:
        """Layers on devices other than the CPU that hold weights."""
        holding = {buffer.device for buffer in self.buffers if buffer.size_bytes} - {library.CPU}
        return sum(device in holding for device in self.layer_devices)

    def weights_on(self, device: str) -> int:
        """Return the bytes of weights on a device."""
        return sum(buffer.size_bytes for buffer in self.buffers if buffer.device == device)


class Model:
    """Weights and a tokenizer; a `LanguageModel` as in `ggufrope.lm`.

    Open until `close`; also a context manager. Contexts of one model share its weights and may
    differ in everything else. Closing the model closes its contexts first.
    """

    def __init__(self, path: Path, options: LoadOptions, handle: Any, log: Log) -> None:
        """Use `Model.open` instead."""
        self._library = library.load()
        self._handle = handle
        self._unallocated: Any = None  # a second `llama_model *`, without weights
        self._options = options
        self._log = log
        self._contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        _open.add(self)
        self.path = path
        self.vocabulary = Vocabulary(handle)
        # Read now: a context with a YaRN scale makes llama.cpp change it in the model itself.
        self.n_ctx_train = int(self._library.llama_model_n_ctx_train(handle))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        gpu_layers: int | Literal["all"] = "all",
        kv_overrides: Mapping[str, OverrideValue] | None = None,
        use_mmap: bool = True,
        main_gpu: int | None = None,
        tensor_split: Sequence[float] = (),
        experts_on_cpu: int | Literal["all"] = 0,
        rpc: Sequence[str] = (),
        progress: LoadProgress | None = None,
    ) -> Self:
        """Load a GGUF file; for a split model, its first shard.

        `gpu_layers` is how many layers to put on the GPU; "all" is none where the build cannot.
        `kv_overrides` replaces scalar metadata for this load only; nothing is written.
        `main_gpu` puts the whole model on that one GPU; `tensor_split` divides it in these
        proportions. `experts_on_cpu` keeps the experts of that many layers, from the first, on the
        CPU, where they are of a mixture of experts: they are most of its weights, and few of them
        are used for a token. `rpc` are llama.cpp's RPC servers, each "host:port": their devices are
        GPUs that come before those of this machine.

        Raises MalformedError for a file that is not GGUF, LoadError with llama.cpp's own reason,
        InsufficientMemoryError, RequestError for an override that llama.cpp would ignore,
        BackendError where an RPC server does not answer, and MissingDependencyError without
        llama-cpp-python, or without GPU support or RPC where the options need it.
        """
        options = LoadOptions(
            gpu_layers=gpu_layers,
            kv_overrides=dict(kv_overrides or {}),
            use_mmap=use_mmap,
            main_gpu=main_gpu,
            tensor_split=tuple(tensor_split),
            experts_on_cpu=experts_on_cpu,
            rpc=tuple(rpc),
        )
        servers.acquire(options.rpc)
        try:
            if options.rpc or library.can_offload():
                require_weights_fit(Path(path), options)
            handle, log = load(Path(path), options, progress=progress)
        except BaseException:
            servers.release(options.rpc)
            raise
        model = cls(Path(path), options, handle, log)
        servers.watch(options.rpc)
        return model

    def close(self) -> None:
        """Free the weights, after the contexts made of them. Closing twice is fine."""
        for context in tuple(self._contexts):
            context.close()
        for handle in (self._unallocated, self._handle):
            if handle is not None:
                self._library.llama_model_free(handle)
        if self._handle is not None:
            servers.release(self.servers)
        self._unallocated = self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """The `llama_model *`, for the other modules of the runtime."""
        if self._handle is None:
            raise LoadError(f"{self.path.name}: the model was closed")
        return self._handle

    def size_context(self, settings: ContextSettings) -> ContextSize:
        """Return the size of a context of `settings`, without making one.

        Raises RequestError for settings out of range.
        """
        if self._unallocated is None and self.handle:
            self._unallocated, _ = load(self.path, self._options, allocate=False)
        return size_context(self._unallocated, settings, n_seq_max=self.n_sequences)

    def adopt(self, context: Any) -> None:
        """Close `context` before the model."""
        self._contexts.add(context)

    # Properties ---------------------------------------------------------------------------------

    @property
    def servers(self) -> tuple[str, ...]:
        """The RPC servers that the model may be on."""
        return self._options.rpc

    @cached_property
    def purpose(self) -> Purpose:
        """What the model is for, by what its file says."""
        return purpose(read_metadata(read_header(self.path)))

    @property
    def n_layer(self) -> int:
        """Transformer blocks."""
        return int(self._library.llama_model_n_layer(self.handle))

    @property
    def n_embd(self) -> int:
        """Width of the embedding."""
        return int(self._library.llama_model_n_embd(self.handle))

    @property
    def n_head(self) -> int:
        """Query heads of the first layer."""
        return int(self._library.llama_model_n_head(self.handle))

    @property
    def n_head_kv(self) -> int:
        """Key/value heads of the first layer."""
        return int(self._library.llama_model_n_head_kv(self.handle))

    @property
    def head_size(self) -> int:
        """Width of one key head: `attention.key_length`, else embedding width / heads."""
        return self.attention_size("key_length") or self.n_embd // self.n_head

    @property
    def value_head_size(self) -> int:
        """Width of one value head: `attention.value_length`, else embedding width / heads."""
        return self.attention_size("value_length") or self.n_embd // self.n_head

    @property
    def n_swa(self) -> int:
        """Tokens that a sliding-window layer sees; 0 where no layer has a window."""
        return int(self._library.llama_model_n_swa(self.handle))

    @property
    def has_state(self) -> bool:
        """Whether some layer keeps a recurrent state, which cannot be rolled back."""
        llama = self._library
        return bool(
            llama.llama_model_is_recurrent(self.handle) or llama.llama_model_is_hybrid(self.handle)
        )

    @property
    def n_sequences(self) -> int:
        """Sequences that a context can hold, few where each has a recurrent state in memory."""
        return SEQUENCES_WITH_STATE if self.has_state else SEQUENCES

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self._library.llama_model_size(self.handle))

    @property
    def description(self) -> str:
        """llama.cpp's own description, such as "llama 1B Q4_K - Medium"."""
        buffer = ctypes.create_string_buffer(256)
        self._library.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return self.metadata("general.architecture") or ""

    @cached_property
    def placement(self) -> Placement:
        """The devices that the weights are on, as the log of loading them says."""
        return Placement(
            layer_devices=layer_devices(self._log), buffers=buffers(self._log, "model")
        )

    @cached_property
    def reported(self) -> Mapping[str, str]:
        """The hyperparameters that llama.cpp logged at load, overrides applied: "n_rot" -> "64"."""
        lines = self._log.search(r"^print_info: (\S[^=]*?) += (.*\S)")
        return {line[1]: line[2] for line in lines}

    def metadata(self, key: str) -> str | None:
        """Return the file's value of a scalar key as llama.cpp prints it, or None.

        Overrides are not applied.
        """
        name = key.encode()
        length = self._library.llama_model_meta_val_str(self.handle, name, None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self._library.llama_model_meta_val_str(self.handle, name, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def attention_size(self, name: str) -> int:
        """Return the file's whole number `attention.NAME`, 0 where it has none."""
        declared = self.metadata(f"{self.architecture}.attention.{name}") or ""
        return int(declared) if declared.isdecimal() else 0

    def setting(self, key: str) -> str | None:
        """Return the scalar value in effect: the override's, else the file's, else None."""
        overrides = self._options.kv_overrides
        return str(overrides[key]) if key in overrides else self.metadata(key)

    # Tokens -------------------------------------------------------------------------------------

    @property
    def lanes(self) -> int:
        """1: two contexts at once would share the same devices."""
        return 1

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self.vocabulary.size

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the template for chats, None where the file has none."""
        return self.metadata("tokenizer.chat_template") or None

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of the tokens that templates name: `bos_token` and `eos_token`."""
        return self.vocabulary.special_tokens

    def tokenize(self, text: str, *, beginning: bool = False, special: bool = False) -> list[int]:
        """Return the tokens of plain text, as it stands after other text.

        With `beginning`, as it stands at the start: BOS and a space precede it where the
        vocabulary adds them. With `special`, the texts of special tokens become those tokens.
        """
        return self.vocabulary.tokenize(text, beginning=beginning, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones spelled out."""
        return self.vocabulary.detokenize(tokens)
