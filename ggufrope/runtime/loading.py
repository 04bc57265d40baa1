"""Loading a model: the options, the call, and what its log says of memory."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ggufrope.container.checks import layout_findings
from ggufrope.container.reader import read_header
from ggufrope.container.types import ArrayValue
from ggufrope.errors import (
    FileError,
    InsufficientMemoryError,
    LoadError,
    MissingDependencyError,
    RequestError,
)
from ggufrope.rope.keys import KEYS, SCALING_TYPES
from ggufrope.rope.lint import lint
from ggufrope.rope.metadata import read_metadata
from ggufrope.runtime import library, rpc

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.container.types import Header
    from ggufrope.rope.findings import Finding
    from ggufrope.runtime.library import Log

OverrideValue: TypeAlias = int | float | bool | str
LoadProgress: TypeAlias = Callable[[float], None]
"""A function called with the share of the weights read so far, 0 to 1."""

_ABORTS = frozenset(
    {
        "factor-type",
        "factor-length",
        "rotary-dimensions",
        "attention-temperature",
        "layer-count",
        "misaligned-data",
        "unusable-type",
    }
)
"""Codes of findings on which llama.cpp ends the process."""
_MOST_EXPERTS = 1024  # LLAMA_MAX_EXPERTS, src/llama-hparams.h

_MIB = 1024 * 1024
_OUT_OF_MEMORY = re.compile(r"out of memory|(failed|unable) to (re)?allocate", re.IGNORECASE)
# enum llama_model_kv_override_type and llama_load_mode, include/llama.h
_INT, _FLOAT, _BOOL, _STRING = range(4)
_LOAD_MODE_NONE, _LOAD_MODE_MMAP = 0, 1
_OVERRIDE_BYTES = 127  # key and string value are char[128]
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # LLM_FFN_EXPS_REGEX, common/common.h


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The options of `Model.open`, which describes them."""

    gpu_layers: int | Literal["all"] = "all"
    kv_overrides: Mapping[str, OverrideValue] = field(default_factory=dict)
    use_mmap: bool = True
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] = ()
    experts_on_cpu: int | Literal["all"] = 0
    rpc: tuple[str, ...] = ()

    @property
    def expert_patterns(self) -> tuple[str, ...]:
        """Regular expressions for the names of the tensors that stay on the CPU."""
        if self.experts_on_cpu == "all":
            return (_EXPERTS,)
        return tuple(rf"blk\.{layer}{_EXPERTS}" for layer in range(self.experts_on_cpu))

    @property
    def wants_gpu(self) -> bool:
        """Whether the options need a GPU, rather than use one where there is one."""
        some_layers = self.gpu_layers != "all" and self.gpu_layers != 0
        return some_layers or self.main_gpu is not None or bool(self.tensor_split)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """Memory that llama.cpp allocated on one device, to 0.01 MiB as in its log."""

    device: str
    size_bytes: int


def load(
    path: Path,
    options: LoadOptions,
    *,
    progress: LoadProgress | None = None,
    allocate: bool = True,
) -> tuple[Any, Log]:
    """Load a model; return its `llama_model *` and the log of loading it.

    Without `allocate` no weights are read. Such a model serves to size contexts. Raises what
    `Model.open` does.
    """
    _refuse_what_aborts(path, options)
    llama = library.load()
    rpc.register(options.rpc)
    if options.wants_gpu and not (options.rpc or library.can_offload()):
        raise MissingDependencyError(
            "this build of llama.cpp cannot use a GPU; `ggufrope doctor` has the command that "
            "installs one that can"
        )
    parameters = _model_parameters(llama, options, allocate=allocate)
    # llama.cpp reads them until the model is loaded.
    overrides = _on_cpu(options.expert_patterns)
    if overrides is not None:
        parameters.tensor_buft_overrides = ctypes.addressof(overrides)
    with library.capture(debug=True) as log:  # the devices of layers are in debug lines
        handle = _load_from_file(llama, path, parameters, progress)
    if not handle:
        raise _load_error(path, log)
    try:
        _refuse_ignored(options.kv_overrides, log)
    except RequestError:
        llama.llama_model_free(handle)
        raise
    return handle, log


def refusal(path: Path) -> str | None:
    """Return why llama.cpp does not load the file, None where it does; no weights are read.

    Raises MissingDependencyError, and FileError where our own reader refuses the file.
    """
    try:
        handle, _ = load(path, LoadOptions(gpu_layers=0), allocate=False)
    except LoadError as error:
        return str(error)
    library.load().llama_model_free(handle)
    return None


def buffers(log: Log, what: str) -> tuple[Buffer, ...]:
    """Return the `what` buffers ("model", "KV", "compute", "output") that a log lists."""
    lines = log.search(rf"(\S+) +{what} buffer size = +([\d.]+) MiB")
    return tuple(
        Buffer(device=library.device_of(line[1]), size_bytes=round(float(line[2]) * _MIB))
        for line in lines
    )


def layer_devices(log: Log) -> tuple[str, ...]:
    """Return the device of each layer, the output last, as the log of a load assigns them.

    It is empty where the log does not say. "offloaded N/M layers to GPU" is no source: llama.cpp
    prints there what was asked of it, whatever devices it has.
    """
    assigned = log.search(r"layer +(\d+) assigned to device ([^,]+),")
    device_of = {int(line[1]): line[2] for line in assigned}
    return tuple(device_of[layer] for layer in sorted(device_of))


def ran_out_of_memory(log: Log) -> bool:
    """Return whether an allocation failed."""
    return any(_OUT_OF_MEMORY.search(line) for line in log.errors)


def _model_parameters(llama: Any, options: LoadOptions, *, allocate: bool) -> Any:
    """Return a `llama_model_params`: llama.cpp's defaults, changed only where `options` says."""
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = -1 if options.gpu_layers == "all" else options.gpu_layers
    parameters.load_mode = _LOAD_MODE_MMAP if options.use_mmap and allocate else _LOAD_MODE_NONE
    parameters.no_alloc = not allocate
    if options.main_gpu is not None:
        parameters.main_gpu = options.main_gpu
        parameters.split_mode = llama.LLAMA_SPLIT_MODE_NONE
    if options.tensor_split:
        parameters.tensor_split = _tensor_split(llama, options.tensor_split)
    handles = library.chosen_devices(options.rpc)
    if handles is not None:
        array = (ctypes.c_void_p * (len(handles) + 1))(*handles)  # ended by a null
        parameters.devices = ctypes.cast(array, ctypes.c_void_p)  # which keeps the array
    parameters.kv_overrides = _override_array(llama, options.kv_overrides)
    return parameters


def _load_from_file(llama: Any, path: Path, parameters: Any, progress: LoadProgress | None) -> Any:
    """Return a `llama_model *`, or null where llama.cpp refuses the file.

    Ctrl-C, and an exception of `progress`, end the load and are raised here: llama.cpp logs an
    ended load as an error, which must not be taken for the reason.
    """
    failures: list[BaseException] = []
    with library.deferred_interrupt() as interrupted:

        def go_on(share: float, _user_data: object) -> bool:
            try:
                if progress is not None:
                    progress(share)
            except BaseException as error:
                failures.append(error)
            return not failures and not interrupted()

        callback = llama.llama_progress_callback(go_on)
        parameters.progress_callback = callback
        handle = llama.llama_model_load_from_file(os.fsencode(path), parameters)
    if failures:
        raise failures[0]
    return handle


def _refuse_what_aborts(path: Path, options: LoadOptions) -> None:
    """Refuse a file on which llama.cpp ends the process: it asserts what it does not check.

    Known are scaling types, the element type of factor tensors, rotary dimensions, attention
    temperatures, the number of layers, numbers of experts, the epsilon of norms, types of weights
    that nothing multiplies by, and where the tensors of a mapped file start.
    """
    overrides = options.kv_overrides
    header = read_header(path)
    key = f"{header.architecture}.rope.scaling.type"
    word = overrides.get(key, header.get(key))
    if isinstance(word, str) and word not in SCALING_TYPES:
        raise (RequestError if key in overrides else LoadError)(
            f"{path.name}: {key} is {word!r} (expected one of {', '.join(SCALING_TYPES)}); "
            f"llama.cpp aborts on any other value"
        )
    for suffix, problem in _asserted(header, overrides):
        key = f"{header.architecture}.{suffix}"
        raise (RequestError if key in overrides else LoadError)(
            f"{path.name}: {key} is {problem}; llama.cpp aborts on it"
        )
    found = [(each.code, each.message) for each in _settings_findings(header, overrides)]
    found += [(each.code, each.message) for each in layout_findings(header)]
    for code, message in found:
        if code in _ABORTS and (code != "misaligned-data" or options.use_mmap):
            raise LoadError(f"{path.name}: {message}")


def _asserted(header: Header, overrides: Mapping[str, OverrideValue]) -> Iterator[tuple[str, str]]:
    """Yield the suffix of each key that llama.cpp asserts something else of, and what is wrong:
    `llama_model_base::load_hparams` (src/llama-model.cpp 1318-1375), and norms in
    ggml/src/ggml-cpu/ops.cpp."""

    def value(suffix: str) -> float:
        key = f"{header.architecture}.{suffix}"
        found = overrides.get(key, header.get(key))
        items = (found.items or ()) if isinstance(found, ArrayValue) else (found,)
        return max((each for each in items if isinstance(each, int | float)), default=0)

    for suffix in ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"):
        if not value(suffix) >= 0:
            yield suffix, f"{value(suffix):g}: expected 0 or more"
    if (drafting := value("nextn_predict_layers")) > value("block_count"):
        yield "nextn_predict_layers", f"{drafting}: more than there are layers"
    experts, used = value("expert_count"), value("expert_used_count")
    groups, groups_used = value("expert_group_count"), value("expert_group_used_count")
    if header.architecture in ("hunyuan-dense", "hunyuan_vl") and experts <= 1:
        return
    if experts > _MOST_EXPERTS:
        yield "expert_count", f"{experts}: expected at most {_MOST_EXPERTS}"
    if used > experts or (experts and not used):
        expected = f"1 to {experts}, the number of experts" if experts else "0, without experts"
        yield "expert_used_count", f"{used}: expected {expected}"
    if groups and groups >= experts:
        yield "expert_group_count", f"{groups}: expected fewer than {experts}, the experts"
    elif groups > 1 and experts % groups:
        yield "expert_group_count", f"{groups}: expected a divisor of {experts}, the experts"
    elif groups > 1 and not 0 < groups_used < groups:
        yield "expert_group_used_count", f"{groups_used}: expected 1 to {groups - 1}"


def _settings_findings(header: Header, overrides: Mapping[str, OverrideValue]) -> Iterator[Finding]:
    """Yield the findings about the settings of a file under `overrides`."""
    try:
        metadata = read_metadata(header)
    except FileError:
        return  # llama.cpp says what it does not accept
    keys = {metadata.key(field): field for field in KEYS}
    changes: dict[str, Any] = {keys[k]: v for k, v in overrides.items() if k in keys}
    metadata = replace(metadata, **changes)
    if metadata.n_rot is None:
        return
    yield from lint(metadata)


def _load_error(path: Path, log: Log) -> LoadError | InsufficientMemoryError:
    reason = log.reason or "no reason given"
    if ran_out_of_memory(log):
        return InsufficientMemoryError(f"{path}: not enough memory for the weights: {reason}")
    return LoadError(f"{path}: llama.cpp cannot load it: {reason}")


def _refuse_ignored(overrides: Mapping[str, OverrideValue], log: Log) -> None:
    """Refuse an override of the wrong type: llama.cpp would warn and go on without it."""
    ignored = log.search(r"Bad metadata override type for key '(.+)', expected (\w+) but got (\w+)")
    for line in ignored:
        raise RequestError(
            f"{line[1]}={overrides[line[1]]}: llama.cpp expects type {line[2]}, found {line[3]}, "
            f"and would ignore the override"
        )


def _override_array(llama: Any, overrides: Mapping[str, OverrideValue]) -> Any:
    """Return the overrides as a C array, ended by an empty key."""
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


class _BufferOverride(ctypes.Structure):
    """`struct llama_model_tensor_buft_override`, include/llama.h."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def _on_cpu(patterns: tuple[str, ...]) -> Any:
    """Return a C array that keeps the tensors with these names on the CPU, None for none.

    An empty pattern ends it.
    """
    if not patterns:
        return None
    cpu = library.ggml_function("ggml_backend_cpu_buffer_type", ctypes.c_void_p)()
    array = (_BufferOverride * (len(patterns) + 1))()
    for slot, pattern in zip(array, patterns, strict=False):
        slot.pattern, slot.buft = pattern.encode(), cpu
    return array


def _short(text: str, key: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > _OVERRIDE_BYTES:
        raise RequestError(f"override of {key}: {len(encoded)} bytes (limit: {_OVERRIDE_BYTES})")
    return encoded


def _tensor_split(llama: Any, proportions: tuple[float, ...]) -> Any:
    most = int(llama.llama_max_devices())
    if len(proportions) > most or min(proportions) < 0 or not sum(proportions):
        raise RequestError(
            f"tensor_split {proportions}: expected at most {most} shares, none negative, not all 0"
        )
    return (ctypes.c_float * most)(*proportions)
