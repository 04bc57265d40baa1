"""Weights by device: which would go to which GPU, and how many layers fit, before any is loaded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufrope._bisect import largest
from ggufrope._format import byte_size
from ggufrope.container.reader import read_header
from ggufrope.container.shards import open_model
from ggufrope.errors import InsufficientMemoryError
from ggufrope.runtime import library, rpc
from ggufrope.runtime.loading import Buffer, LoadOptions, layer_devices, load
from ggufrope.runtime.settings import SEQUENCES
from ggufrope.runtime.sizing import size_context

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from ggufrope.runtime.library import Log
    from ggufrope.runtime.settings import ContextSettings

_SPARE_BYTES = 2**30
"""Left free on each GPU by `fitting_layers`, as llama.cpp's own fitting does: some kernels take
scratch memory that is in no buffer."""


def free_on_gpus(servers: Collection[str] = ()) -> dict[str, int]:
    """Return the bytes that are free on each GPU, those of these RPC servers included, by name.

    A device that does not say what it has is left out.
    """
    gpus = [each for each in library.devices(servers) if each.kind in ("gpu", "igpu")]
    return {each.name: each.memory_free for each in gpus if each.memory_total}


def weights_need(path: Path, options: LoadOptions) -> tuple[Buffer, ...]:
    """Return the bytes of weights on each device, with no weights loaded.

    llama.cpp decides where each layer goes; the file says how large it is.
    """
    handle, log = load(path, options, allocate=False)
    library.load().llama_model_free(handle)
    return _by_device(path, options, log)


def require_weights_fit(
    path: Path, options: LoadOptions, free: Mapping[str, int] | None = None
) -> None:
    """Raise InsufficientMemoryError where a device in `free` has too little for its weights.

    `free` is bytes by device; None is what is free on the GPUs now.
    """
    free = free_on_gpus(options.rpc) if free is None else free
    for need in weights_need(path, options) if free else ():
        if need.size_bytes > free.get(need.device, need.size_bytes):
            raise InsufficientMemoryError(
                f"{path.name}: the layers on {need.device} need {byte_size(need.size_bytes)}, but "
                f"{byte_size(free[need.device])} are free: set gpu_layers lower"
            )


def fitting_layers(
    path: Path,
    settings: ContextSettings,
    options: LoadOptions | None = None,
    free: Mapping[str, int] | None = None,
) -> int:
    """Return the largest number of layers that fit on the devices in `free`; 0 where none do.

    Each device also has to hold its part of a context of `settings`. `free` is bytes by device;
    None is what is free on the GPUs now, less 1 GiB each. `options.gpu_layers` is not used.
    """
    options = options or LoadOptions()
    if free is None:
        rpc.register(options.rpc)
        free = {name: size - _SPARE_BYTES for name, size in free_on_gpus(options.rpc).items()}
    header = read_header(path)
    block_count = header.get(f"{header.architecture}.block_count")
    if not free or not isinstance(block_count, int):
        return 0
    return largest(
        lambda layers: _fits(path, replace(options, gpu_layers=layers), settings, free),
        0,
        block_count + 1,
    )


def _fits(
    path: Path, options: LoadOptions, settings: ContextSettings, free: Mapping[str, int]
) -> bool:
    handle, log = load(path, options, allocate=False)
    try:
        context = size_context(handle, settings, n_seq_max=SEQUENCES)
    finally:
        library.load().llama_model_free(handle)
    need = Counter[str]()
    for buffer in (*_by_device(path, options, log), *context.buffers):
        need[buffer.device] += buffer.size_bytes
    return context.refusal is None and all(need[name] <= size for name, size in free.items())


def _by_device(path: Path, options: LoadOptions, log: Log) -> tuple[Buffer, ...]:
    """Add up the sizes of layers by the device that the log assigns them to.

    Tensors in no layer stay on the CPU, except the output, which counts as the last layer; so do
    the experts that the options keep there. Where the file has no output, the embedding is the
    output too, copied to its device.
    """
    devices = layer_devices(log)
    on_cpu = re.compile("|".join(options.expert_patterns) or r"\Z.")
    sizes = Counter[str]()
    tensors = {tensor.name: tensor for tensor in open_model(path).tensors}
    if "output.weight" not in tensors and devices and devices[-1] != library.CPU:
        embedding = tensors.get("token_embd.weight")
        sizes[devices[-1]] += 0 if embedding is None else embedding.length
    for tensor in tensors.values():
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        number = int(layer[1]) if layer else len(devices) - 1
        placed = layer is not None or tensor.name.startswith("output")
        placed = placed and number < len(devices) and not on_cpu.search(tensor.name)
        sizes[devices[number] if placed else library.CPU] += tensor.length
    return tuple(Buffer(device=device, size_bytes=size) for device, size in sizes.items())
