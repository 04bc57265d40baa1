"""What the runtime reads of the llama.cpp that is loaded, seen on a model of some kilobytes.

llama.cpp's log and its saved states have no stable format, and any build may be loaded. So doctor
does not only name the build: it lets it run, in a process of its own, and says what could be read
and what could not.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufrope._files import working_folder
from ggufrope._plain import decode, encode
from ggufrope.container.pieces import encode_key_value, encode_tensor_info
from ggufrope.container.types import TypedValue, ValueType
from ggufrope.errors import BackendError, RequestError
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.probe import probe
from ggufrope.runtime.settings import ContextSettings
from ggufrope.runtime.states import state_version

_WIDTH, _HIDDEN, _TOKENS, _CONTEXT, _BASE = 64, 32, 32, 256, 10_000.0
"""One layer with one head of 64 values, the smallest whose quantized cache llama.cpp rotates."""
_ALIGNMENT = 32
_RIGHT = 1e-4
"""Relative error up to which a measured rotation is the declared one."""
_SECONDS = 60
"""Time that the child process has; it takes about one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """What is read of a build of llama.cpp.

    `failure` is why the model did not run to the end, None where it did. `state_version` is that of
    its saved states, None where it is not one that is read. `rotation_error` is the largest
    relative error of a rotation that was measured, against the one that the file declares, None
    where it could not be measured. `unread` has what the log did not say in a known form.
    """

    failure: str | None
    state_version: int | None
    rotation_error: float | None
    unread: tuple[str, ...]

    @property
    def rotation_right(self) -> bool:
        """Whether the rotation was measured and is the declared one."""
        return self.rotation_error is not None and self.rotation_error < _RIGHT


def self_check() -> SelfCheck:
    """Run a small model on the CPU, in the llama.cpp that this process uses, and say what is read.

    A child process runs it: a build that is called wrongly may end the process.
    """
    code = f"from {__name__} import main; main()"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return _failed(f"it did not end within {_SECONDS} seconds")
    if child.returncode == 0:
        return decode(SelfCheck, json.loads(child.stdout.splitlines()[-1]))
    how = f"exit status {child.returncode}"
    if child.returncode < 0:
        how = signal.Signals(-child.returncode).name
    last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return _failed(f"it ended the process ({how}): {''.join(last) or 'no reason'}")


def main() -> None:
    """Write the result as a line of JSON to standard output: the child process."""
    sys.stdout.write(f"{json.dumps(encode(_checked(), exact=True))}\n")


def _failed(reason: str) -> SelfCheck:
    return SelfCheck(failure=reason, state_version=None, rotation_error=None, unread=())


def _checked() -> SelfCheck:
    version = error = failure = None
    unread: list[str] = []
    with working_folder() as folder:
        path = folder / "self-check.gguf"
        path.write_bytes(_model())
        try:
            with Model.open(path, gpu_layers=0) as model:
                unread += _unread(model)
                with Context(model, ContextSettings(n_ctx=_CONTEXT)) as context:
                    version = state_version(context.handle)
                error = _rotation_error(model)
            if not _refuses_overrides(path):
                unread.append("that an override has the wrong type")
        except BackendError as problem:
            failure = str(problem)
    return SelfCheck(
        failure=failure, state_version=version, rotation_error=error, unread=tuple(unread)
    )


def _unread(model: Model) -> Iterator[str]:
    """Yield what the log of loading the model, and of contexts of it, does not say."""
    if "n_rot" not in model.reported:
        yield "the hyperparameters"
    if not model.placement.buffers:
        yield "where the weights are"
    settings = ContextSettings(n_ctx=_CONTEXT, type_k="q8_0", type_v="q8_0")
    size = model.size_context(settings)
    if size.graph_splits is None:
        yield "between how many devices a computation changes"
    cache = size.cache
    if cache is None:
        yield "the size of the cache"
        return
    if sum(buffer.size_bytes for buffer in size.buffers) < cache.size_bytes:
        yield "on which devices the cache is"
    if cache.rotated_k is None or cache.rotated_v is None:
        yield "whether the cache is rotated"
    if cache.flash_attention is None:
        yield "whether flash attention is used"


def _rotation_error(model: Model) -> float:
    """Return the largest relative error of the rotation that is measured."""
    (layer,) = probe(model).layers
    declared = _BASE ** (-np.arange(0, _WIDTH, 2) / _WIDTH)
    measured = np.array(layer.inverse_frequencies)
    if measured.shape != declared.shape:
        return float("inf")
    return float(np.abs(measured / declared - 1).max())


def _refuses_overrides(path: Path) -> bool:
    """Return whether an override of the wrong type is noticed."""
    try:
        Model.open(path, gpu_layers=0, kv_overrides={"llama.rope.freq_base": 5}).close()
    except (RequestError, BackendError):
        return True
    return False


def _model() -> bytes:
    """Return a GGUF file: a Llama of one layer with random weights and no tokenizer."""
    keys: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": _CONTEXT,
        "llama.embedding_length": _WIDTH,
        "llama.feed_forward_length": _HIDDEN,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": _BASE,
        "llama.vocab_size": _TOKENS,
        "tokenizer.ggml.model": "no_vocab",
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (_WIDTH, _TOKENS),
        "output_norm.weight": (_WIDTH,),
        **{f"blk.0.{part}_norm.weight": (_WIDTH,) for part in ("attn", "ffn")},
        **{f"blk.0.attn_{part}.weight": (_WIDTH, _WIDTH) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}.weight": (_WIDTH, _HIDDEN) for part in ("gate", "up")},
        "blk.0.ffn_down.weight": (_HIDDEN, _WIDTH),
    }
    types = {str: ValueType.STRING, int: ValueType.UINT32, float: ValueType.FLOAT32}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys))
    for key, value in keys.items():
        head += encode_key_value(key, TypedValue(type=types[type(value)], value=value), "<")
    generator = np.random.default_rng(0)
    data = b""
    for name, shape in shapes.items():
        head += encode_tensor_info(name, shape, 0, len(data), "<")
        weights = generator.normal(size=shape[::-1]) if len(shape) > 1 else np.ones(shape)
        data += (weights / shape[0] ** (0.5 * (len(shape) - 1))).astype("<f4").tobytes()
    return head.ljust(-(-len(head) // _ALIGNMENT) * _ALIGNMENT, b"\0") + data
