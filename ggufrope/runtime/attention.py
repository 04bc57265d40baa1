"""Which pairs of cache types the attention of this build runs, and where, device by device.

The backends themselves are asked: an operation of the types and sizes of a model, without data, is
shown to `ggml_backend_dev_supports_op`, which llama.cpp's scheduler follows too. (The backend of an
RPC server says yes to all of them and asks nobody, so nothing is known of its devices.) A kernel
that a build was made without shows only in what the build says of itself
(ggml_cuda_get_fattn_vec_case, ggml/src/ggml-cuda/fattn.cu, and the feature FA_QUANTS).
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ggufrope.container.ggml import CACHE_TYPES, F16, F32, CacheType
from ggufrope.errors import FileError, MissingDependencyError
from ggufrope.rope.cache import head_sizes
from ggufrope.rope.metadata import first_layer
from ggufrope.runtime import library
from ggufrope.runtime.cards import cards

if TYPE_CHECKING:
    from collections.abc import Collection

    from ggufrope.rope.metadata import RopeMetadata
    from ggufrope.runtime.model import Model

Attention: TypeAlias = Literal["native", "plain", "converted", "cpu", "unknown"]
"""How attention runs on a pair of cache types.

"native": by a kernel that reads both types. "plain": on the device, without flash attention.
"converted": on the device, by a kernel for f16; the whole cache is converted for every token, which
a long one shows in the speed.
"cpu": it leaves the device, which is slow. "unknown": the device is on a server that decides.
"""

_TOKENS, _CELLS = (1, 512), 8192
"""Tokens of the batches asked about, and cells of the cache: a decode and a prefill."""
_I64 = 27  # enum ggml_type, ggml/include/ggml.h
_CONTEXT_BYTES = 1 << 16
_VECTOR_HEADS = (64, 128, 256)
"""Head sizes that CUDA's kernels for quantized caches have (FATTN_VEC_CASES_ALL_D); they are for
the one or two tokens of a decode, and all other kernels convert."""
_CUDA_LIKE = ("CUDA", "ROCm", "MUSA")
"""Backends made of CUDA's source, by the names of their registries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The attention heads of a model: their number, and the sizes of a key and a value head."""

    query: int = 32
    kv: int = 8
    key_size: int = 128
    value_size: int = 128


USUAL_HEADS = Heads()
"""Those of most models of 7 to 70 billion parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSupport:
    """How one device runs attention on a cache with K of one type and V of another."""

    device: str
    type_k: str
    type_v: str
    runs: Attention


def pair_support(
    heads: Heads = USUAL_HEADS, servers: Collection[str] = ()
) -> tuple[PairSupport, ...]:
    """Return how each device of this build, and of these RPC servers, runs each pair of cache
    types.

    Pairs with blocks that do not divide a head are left out: they run nowhere. So are
    accelerators, which hold no cache. Raises MissingDependencyError without llama-cpp-python.
    """
    compiled = compiled_pairs(library.versions().system_info)
    pairs = [
        (k, v)
        for k, v in product(CACHE_TYPES.values(), repeat=2)
        if heads.key_size % k.block_size == 0 and heads.value_size % v.block_size == 0
    ]
    return tuple(
        PairSupport(
            device=device.name,
            type_k=k.name,
            type_v=v.name,
            runs="unknown" if device.server else _runs(device.handle, k, v, heads, compiled),
        )
        for device in library.found_devices()
        if device.kind != "accelerator" and (not device.server or device.server in servers)
        for k, v in pairs
    )


def heads_of(model: Model) -> Heads:
    """Return the heads of a model's first layer."""
    return Heads(
        query=model.n_head,
        kv=model.n_head_kv or model.n_head,
        key_size=model.head_size,
        value_size=model.value_head_size,
    )


def slow_pairs(support: tuple[PairSupport, ...]) -> frozenset[tuple[str, str]]:
    """Return the pairs, K and V, whose attention leaves some GPU.

    They decode at a few per cent of the speed of f16. A converted pair has 54 to 91 % of it, one
    with a kernel 63 to 86 % (benchmarks/results/gpu_h200.md).
    """
    return frozenset(
        (pair.type_k, pair.type_v)
        for pair in support
        if pair.runs == "cpu" and pair.device != library.CPU
    )


def known_slow_pairs(metadata: RopeMetadata) -> frozenset[tuple[str, str]] | None:
    """Return the pairs that the installed build runs slowly on the heads of a file.

    None where llama.cpp is not installed, where the file does not say, and where there is no GPU:
    the model is meant for another machine.
    """
    if not cards():
        return None
    query = first_layer(metadata.head_count) or USUAL_HEADS.query
    kv = first_layer(metadata.head_count_kv) or query
    try:
        key_size, value_size = head_sizes(metadata, slides=False)
        return slow_pairs(
            pair_support(Heads(query=query, kv=kv, key_size=key_size, value_size=value_size))
        )
    except (FileError, MissingDependencyError):
        return None


def compiled_pairs(system_info: str) -> frozenset[tuple[str, str]] | None:
    """Return the pairs that CUDA's flash attention was compiled for, K and V.

    All pairs are None, and so is a build that does not say: before GGML_CUDA_FA_QUANTS, a pair that
    was not compiled is an operation that the backend refuses.
    """
    listed = re.search(r"FA_QUANTS = ([\w,;-]+)", system_info)
    if listed is None or listed[1] == "all":
        return None
    pairs = (pair.split("-") for pair in re.split("[,;]", listed[1]))
    return frozenset((pair[0], pair[-1]) for pair in pairs) | {("f16", "f16")}


def _runs(
    device: ctypes.c_void_p,
    k: CacheType,
    v: CacheType,
    heads: Heads,
    compiled: frozenset[tuple[str, str]] | None,
) -> Attention:
    backend = _registry_of(device)
    with _Graph() as graph:
        if not graph.stores(device, k, heads.kv * heads.key_size) or not graph.stores(
            device, v, heads.kv * heads.value_size
        ):
            return "cpu"
        if not all(graph.flash(device, k, v, heads, tokens) for tokens in _TOKENS):
            multiplies = all(graph.multiplies(device, k, heads, tokens) for tokens in _TOKENS)
            return "plain" if multiplies and not v.quantized else "cpu"
    # llama.cpp casts f32 to f16 before flash attention.
    names = tuple("f16" if kind.number == F32 else kind.name for kind in (k, v))
    if backend not in _CUDA_LIKE or names == ("f16", "f16"):
        return "native"
    has_kernel = heads.key_size in _VECTOR_HEADS and (compiled is None or names in compiled)
    return "native" if has_kernel else "converted"


def _registry_of(device: ctypes.c_void_p) -> str:
    """Return the name of the backend that a `ggml_backend_dev_t` belongs to, such as "CUDA"."""
    registry = library.ggml_function(
        "ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p
    )
    name = library.ggml_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    return bytes(name(registry(device))).decode("utf-8", "replace")


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`, ggml/include/ggml.h."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class _Graph:
    """A ggml context for tensors without data, and the questions about operations on them."""

    def __enter__(self) -> _Graph:
        init = library.ggml_function("ggml_init", ctypes.c_void_p, _InitParams)
        self._context = ctypes.c_void_p(init(_InitParams(_CONTEXT_BYTES, None, True)))
        return self

    def __exit__(self, *_: object) -> None:
        library.ggml_function("ggml_free", None, ctypes.c_void_p)(self._context)

    def stores(self, device: ctypes.c_void_p, kind: CacheType, width: int) -> bool:
        """Whether a batch is written into a cache of `kind` there."""
        rows = self._tensor(F32, width, max(_TOKENS))
        cache, places = self._tensor(kind.number, width, _CELLS), self._tensor(_I64, max(_TOKENS))
        return self._supported(device, "ggml_set_rows", cache, rows, places)

    def flash(
        self, device: ctypes.c_void_p, k: CacheType, v: CacheType, heads: Heads, tokens: int
    ) -> bool:
        """Whether flash attention runs there."""
        keys, values = (F16 if kind.number == F32 else kind.number for kind in (k, v))
        numbers = (ctypes.c_float(1.0), ctypes.c_float(0.0), ctypes.c_float(0.0))
        return self._supported(
            device,
            "ggml_flash_attn_ext",
            self._tensor(F32, heads.key_size, tokens, heads.query),
            self._tensor(keys, heads.key_size, _CELLS, heads.kv),
            self._tensor(values, heads.value_size, _CELLS, heads.kv),
            self._tensor(F16, _CELLS, tokens),
            *numbers,
        )

    def multiplies(
        self, device: ctypes.c_void_p, kind: CacheType, heads: Heads, tokens: int
    ) -> bool:
        """Whether keys of `kind` are multiplied with queries there."""
        keys = self._tensor(kind.number, heads.key_size, _CELLS, heads.kv)
        queries = self._tensor(F32, heads.key_size, tokens, heads.query)
        return self._supported(device, "ggml_mul_mat", keys, queries)

    def _tensor(self, kind: int, *shape: int) -> ctypes.c_void_p:
        sizes = [*shape, 1, 1, 1][:4]
        new = library.ggml_function(
            "ggml_new_tensor_4d",
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
            *[ctypes.c_int64] * 4,
        )
        return ctypes.c_void_p(new(self._context, kind, *sizes))

    def _supported(self, device: ctypes.c_void_p, operation: str, *arguments: Any) -> bool:
        kinds = [type(each) for each in arguments]
        make = library.ggml_function(operation, ctypes.c_void_p, ctypes.c_void_p, *kinds)
        supports = library.ggml_function(
            "ggml_backend_dev_supports_op", ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p
        )
        return bool(supports(device, make(self._context, *arguments)))
