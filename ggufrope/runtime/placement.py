"""Which weights would go to which GPU, against what is free there, before any is loaded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufrope._format import byte_size
from ggufrope.container.reader import read_header
from ggufrope.container.shards import open_model
from ggufrope.errors import InsufficientMemoryError
from ggufrope.runtime import library
from ggufrope.runtime.loading import Buffer, LoadOptions, load
from ggufrope.runtime.sizing import rehearse_handle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ggufrope.runtime.library import Log
    from ggufrope.runtime.settings import ContextSettings

_CPU = "CPU"
_SEQUENCES = 64
_SPARE_BYTES = 2**30
"""Left free on each GPU by `fitting_layers`, as llama.cpp's own fitting does: some kernels take
scratch memory that no buffer is sized for."""


def free_on_gpus() -> dict[str, int]:
    """Bytes free by name of GPU."""
    return {d.name: d.memory_free for d in library.devices() if d.kind in ("gpu", "igpu")}


def weights_need(path: Path, options: LoadOptions) -> tuple[Buffer, ...]:
    """Bytes of weights by device: llama.cpp says where each layer would go, the file how large it
    is."""
    handle, log = load(path, options, allocate=False)
    library.load().llama_model_free(handle)
    return _by_device(path, log)


def require_weights_fit(
    path: Path, options: LoadOptions, free: Mapping[str, int] | None = None
) -> None:
    """InsufficientMemoryError where a device in `free` (None: the GPUs) has too little for its
    weights."""
    free = free_on_gpus() if free is None else free
    for need in weights_need(path, options) if free else ():
        if need.size_bytes > free.get(need.device, need.size_bytes):
            raise InsufficientMemoryError(
                f"{path.name}: its layers for {need.device} take {byte_size(need.size_bytes)}, "
                f"where {byte_size(free[need.device])} are free: put fewer there"
            )


def fitting_layers(
    path: Path,
    settings: ContextSettings,
    options: LoadOptions | None = None,
    free: Mapping[str, int] | None = None,
) -> int:
    """The most layers that fit on the devices in `free` (None: the GPUs, less 1 GiB each), with
    their part of a context of `settings`; 0 where none do. `options.gpu_layers` is not looked at.
    """
    options = options or LoadOptions()
    if free is None:
        free = {name: size - _SPARE_BYTES for name, size in free_on_gpus().items()}
    header = read_header(path)
    block_count = header.get(f"{header.architecture}.block_count")
    low, high = 0, block_count + 1 if free and isinstance(block_count, int) else 0
    while low < high:
        middle = (low + high + 1) // 2
        fits = _fits(path, replace(options, gpu_layers=middle), settings, free)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _fits(
    path: Path, options: LoadOptions, settings: ContextSettings, free: Mapping[str, int]
) -> bool:
    handle, log = load(path, options, allocate=False)
    try:
        context = rehearse_handle(handle, settings, n_seq_max=_SEQUENCES)
    finally:
        library.load().llama_model_free(handle)
    need = Counter[str]()
    for buffer in (*_by_device(path, log), *context.buffers):
        need[buffer.device] += buffer.size_bytes
    return context.refusal is None and all(need[name] <= size for name, size in free.items())


def _by_device(path: Path, log: Log) -> tuple[Buffer, ...]:
    """Sizes of layers by the device they are assigned to; what is in no layer stays on the CPU,
    but for the output, which counts as the last layer."""
    found = log.search(r"layer +(\d+) assigned to device ([^,]+),")
    homes = {int(line[1]): line[2] for line in found}
    sizes = Counter[str]()
    for tensor in open_model(path).tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        number = int(layer[1]) if layer else max(homes, default=-1)
        at_home = layer is not None or tensor.name.startswith("output")
        sizes[homes.get(number, _CPU) if at_home else _CPU] += tensor.length
    return tuple(Buffer(device=device, size_bytes=size) for device, size in sizes.items())
