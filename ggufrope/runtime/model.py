"""A loaded model: weights and tokenizer, shared by any number of contexts."""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ggufrope.errors import LoadError, MemoryNeedError, WishError
from ggufrope.rope.keys import SCALING_TYPES
from ggufrope.runtime import library
from ggufrope.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ggufrope.runtime.library import Log

OverrideValue: TypeAlias = int | float | bool | str
LoadProgress: TypeAlias = Callable[[float], None]
"""Called with the share of the weights read so far, 0 to 1."""

_MIB = 1024 * 1024
_OUT_OF_MEMORY = re.compile(r"out of memory|(failed|unable) to (re)?allocate", re.IGNORECASE)
# enum llama_model_kv_override_type, include/llama.h
_INT, _FLOAT, _BOOL, _STRING = range(4)
_OVERRIDE_BYTES = 127  # key and string value are char[128]
_LOAD_MODE_NONE, _LOAD_MODE_MMAP = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """Memory llama.cpp took on one device, as its log says: to 0.01 MiB."""

    device: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the weights went. Layers count the output layer, as llama.cpp does."""

    layers_on_gpu: int
    layers: int
    buffers: tuple[Buffer, ...]


class Model:
    """Weights and a tokenizer, open until `close`; also a context manager.

    Contexts of one model share its weights and may differ in everything else. Closing the model
    closes them first.
    """

    def __init__(
        self, path: Path, handle: Any, log: Log, overrides: Mapping[str, OverrideValue]
    ) -> None:
        """For `Model.open`."""
        self._library = library.load()
        self._handle = handle
        self._contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self._log = log
        self._overrides = overrides
        self.path = path
        self.vocabulary = Vocabulary(handle)
        # A context with a custom YaRN scale makes llama.cpp change this one in the model itself.
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
        progress: LoadProgress | None = None,
    ) -> Self:
        """Load a GGUF file; for a split model, its first shard.

        `gpu_layers` is how many layers to put on the GPU where the build can offload.
        `kv_overrides` replaces scalar metadata for this load only, nothing is written.
        `main_gpu` puts the whole model on that one GPU; `tensor_split` shares it out in these
        proportions. Raises LoadError with llama.cpp's own reason, MemoryNeedError, WishError for
        an override llama.cpp would ignore, MissingPartError without llama-cpp-python.
        """
        path = Path(path)
        overrides = dict(kv_overrides or {})
        _refuse_what_aborts(path, overrides)
        llama = library.load()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = -1 if gpu_layers == "all" else gpu_layers
        parameters.load_mode = _LOAD_MODE_MMAP if use_mmap else _LOAD_MODE_NONE
        if main_gpu is not None:
            parameters.main_gpu = main_gpu
            parameters.split_mode = llama.LLAMA_SPLIT_MODE_NONE
        # Everything the parameters point to must outlive the call: hence these locals.
        split = _tensor_split(llama, tensor_split)
        if split is not None:
            parameters.tensor_split = split
        override_array = _override_array(llama, overrides)
        parameters.kv_overrides = override_array
        on_progress = _progress_callback(llama, progress)
        if on_progress is not None:
            parameters.progress_callback = on_progress
        with library.capture() as log:
            handle = llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not handle:
            raise _load_error(path, log)
        model = cls(path, handle, log, overrides)
        try:
            _refuse_ignored(overrides, log)
        except WishError:
            model.close()
            raise
        return model

    def close(self) -> None:
        """Free the weights, after every context made of them. Closing twice is fine."""
        for context in tuple(self._contexts):
            context.close()
        if self._handle is not None:
            self._library.llama_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """The `llama_model *`, for the other modules of the runtime."""
        if self._handle is None:
            raise LoadError(f"{self.path.name}: the model was closed")
        return self._handle

    def adopt(self, context: Any) -> None:
        """Have `context` closed before the model is."""
        self._contexts.add(context)

    # What it is ---------------------------------------------------------------------------------

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
        declared = self.metadata(f"{self.architecture}.attention.key_length")
        return int(declared) if declared else self.n_embd // self.n_head

    @property
    def value_head_size(self) -> int:
        """Width of one value head: `attention.value_length`, else embedding width / heads."""
        declared = self.metadata(f"{self.architecture}.attention.value_length")
        return int(declared) if declared else self.n_embd // self.n_head

    @property
    def n_swa(self) -> int:
        """Tokens a sliding-window layer sees; 0 where no layer has one."""
        return int(self._library.llama_model_n_swa(self.handle))

    @property
    def recurrent(self) -> bool:
        """Whether some layer keeps a recurrent state, which cannot be rolled back."""
        llama = self._library
        return bool(
            llama.llama_model_is_recurrent(self.handle) or llama.llama_model_is_hybrid(self.handle)
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self._library.llama_model_size(self.handle))

    @property
    def description(self) -> str:
        """llama.cpp's own words, such as "llama 1B Q4_K - Medium"."""
        buffer = ctypes.create_string_buffer(256)
        self._library.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return self.metadata("general.architecture") or ""

    @cached_property
    def placement(self) -> Placement:
        """Where the weights really went."""
        offloaded = self._log.search(r"offloaded (\d+)/(\d+) layers to GPU")
        on_gpu, layers = (int(n) for n in offloaded[-1].groups()) if offloaded else (0, 0)
        return Placement(
            layers_on_gpu=on_gpu,
            layers=layers or self.n_layer + 1,
            buffers=buffers(self._log, "model"),
        )

    @cached_property
    def reported(self) -> Mapping[str, str]:
        """The hyperparameters llama.cpp printed at load, overrides applied: "n_rot" -> "64"."""
        found = self._log.search(r"^print_info: (\S[^=]*?) += (.*\S)")
        return {line[1]: line[2] for line in found}

    def metadata(self, key: str) -> str | None:
        """The file's value of a scalar key as llama.cpp prints it, or None. Ignores overrides."""
        name = key.encode()
        length = self._library.llama_model_meta_val_str(self.handle, name, None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self._library.llama_model_meta_val_str(self.handle, name, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def setting(self, key: str) -> str | None:
        """The value of a scalar key in effect: the override's, else the file's, else None."""
        return str(self._overrides[key]) if key in self._overrides else self.metadata(key)

    # Tokens -------------------------------------------------------------------------------------

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self.vocabulary.size

    def tokenize(self, text: str, *, beginning: bool = False) -> list[int]:
        """Tokens of plain text as it stands after other text; with `beginning`, as it stands at
        the start: preceded by BOS, and by a space, where the vocabulary adds them."""
        return self.vocabulary.tokenize(text, beginning=beginning)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones spelled out."""
        return self.vocabulary.detokenize(tokens)


def buffers(log: Log, what: str) -> tuple[Buffer, ...]:
    """The `what` buffers ("model", "KV", "compute", "output") that a log says were taken."""
    found = log.search(rf"(\S+) {what} buffer size = +([\d.]+) MiB")
    return tuple(Buffer(device=m[1], size_bytes=round(float(m[2]) * _MIB)) for m in found)


def ran_out_of_memory(log: Log) -> bool:
    """Whether an allocation failed."""
    return any(_OUT_OF_MEMORY.search(line) for line in log.errors)


def _refuse_what_aborts(path: Path, overrides: Mapping[str, OverrideValue]) -> None:
    """llama.cpp asserts that it knows the scaling type, so an unknown one must not reach it."""
    if not path.is_file():
        raise LoadError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    for key, value in overrides.items():
        if key.endswith(".rope.scaling.type") and value not in SCALING_TYPES:
            raise WishError(
                f"{key}={value}: llama.cpp knows only {', '.join(SCALING_TYPES)} and aborts on "
                f"any other word"
            )


def _load_error(path: Path, log: Log) -> LoadError | MemoryNeedError:
    reason = log.reason or "it gave no reason"
    if ran_out_of_memory(log):
        return MemoryNeedError(f"{path}: not enough memory for the weights: {reason}")
    return LoadError(f"{path}: llama.cpp cannot load it: {reason}")


def _refuse_ignored(overrides: Mapping[str, OverrideValue], log: Log) -> None:
    """llama.cpp only warns when an override has the wrong type, and goes on without it."""
    ignored = log.search(r"Bad metadata override type for key '(.+)', expected (\w+) but got (\w+)")
    for line in ignored:
        if line[1] in overrides:
            raise WishError(
                f"{line[1]}={overrides[line[1]]}: llama.cpp wants type {line[2]} here, not "
                f"{line[3]}, and would ignore the override"
            )


def _override_array(llama: Any, overrides: Mapping[str, OverrideValue]) -> Any:
    """The C array, ended by an empty key."""
    array = (llama.llama_model_kv_override * (len(overrides) + 1))()
    for slot, (key, value) in zip(array, overrides.items(), strict=False):
        slot.key = _short(key, key)
        if isinstance(value, bool):
            slot.tag, slot.value.val_bool = _BOOL, value
        elif isinstance(value, int):
            slot.tag, slot.value.val_i64 = _INT, value
        elif isinstance(value, float):
            slot.tag, slot.value.val_f64 = _FLOAT, value
        else:
            slot.tag, slot.value.val_str = _STRING, _short(value, key)
    return array


def _short(text: str, key: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > _OVERRIDE_BYTES:
        raise WishError(
            f"override of {key}: over {_OVERRIDE_BYTES} bytes, the most llama.cpp takes"
        )
    return encoded


def _tensor_split(llama: Any, proportions: Sequence[float]) -> Any:
    if not proportions:
        return None
    most = int(llama.llama_max_devices())
    if len(proportions) > most:
        raise WishError(f"tensor split of {len(proportions)} parts: this build has {most} devices")
    return (ctypes.c_float * most)(*np.asarray(proportions, dtype=np.float32).tolist())


def _progress_callback(llama: Any, progress: LoadProgress | None) -> Any:
    if progress is None:
        return None

    def report(share: float, _user_data: object) -> bool:
        progress(share)
        return True

    return llama.llama_progress_callback(report)
