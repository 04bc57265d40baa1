"""What of this machine changes how llama.cpp runs: its CPU's abilities, and the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CPU_FEATURES = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX_VNNI": "avx_vnni",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "FP16_VA": "asimdhp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "SME": "sme",
}
"""llama.cpp's names of what it can be built for (ggml-cpu.cpp, ggml_backend_cpu_get_features), and
Linux's in /proc/cpuinfo."""

ENVIRONMENT = {
    "LLAMA_ATTN_ROT_DISABLE": "quantized caches are not rotated, which costs quality",
    "LLAMA_GRAPH_REUSE_DISABLE": "the graph is built anew for every token, which is slower",
    "LLAMA_KV_CACHE_DEBUG": "prints the cells of the cache",
    "LLAMA_TRACE": "prints what the loader reads",
    "GGML_BACKEND_PATH": "loads a further backend from this library",
    "GGML_SCHED_DEBUG": "prints the parts of every graph",
    "GGML_OP_OFFLOAD_MIN_BATCH": "how many tokens it takes to send work on CPU weights to the GPU",
    "GGML_CPU_DISABLE_FUSION": "operations on the CPU are not fused, which is slower",
    "GGML_CPU_TILED_MM": "chooses how the CPU multiplies matrices",
    "GGML_CUDA_DEVICES": "the number of CUDA devices that are used",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY": "weights may spill to system memory in place of an error",
    "GGML_CUDA_NO_PINNED": "no pinned memory, so transfers are slower",
    "GGML_CUDA_REGISTER_HOST": "mapped files are pinned",
    "GGML_CUDA_P2P": "GPUs copy between each other directly",
    "GGML_CUDA_ALLREDUCE": "how GPUs add up their parts",
    "GGML_CUDA_CUBLAS_COMPUTE_TYPE": "the precision of cuBLAS, which changes results",
    "GGML_CUDA_MMQ_PREC": "the precision of quantized products, which changes results",
    "GGML_CUDA_DISABLE_FUSION": "operations on the GPU are not fused, which is slower",
    "GGML_CUDA_DISABLE_GRAPHS": "no CUDA graphs, so decoding is slower",
    "GGML_CUDA_GRAPH_OPT": "operations of a graph run side by side",
    "GGML_CUDA_PDL": "whether kernels start before the one ahead has ended",
    "GGML_DISABLE_VULKAN": "hides the Vulkan devices",
    "GGML_METAL_BF16_DISABLE": "no bfloat16 on Metal",
    "GGML_METAL_DEVICES": "the number of Metal devices",
    "GGML_METAL_FUSION_DISABLE": "operations on Metal are not fused, which is slower",
    "GGML_METAL_TENSOR_DISABLE": "Metal's tensor operations are not used, which is slower",
    "GGML_RPC_DEBUG": "prints what goes to RPC servers",
    "GGML_RPC_NO_RDMA": "RPC servers are reached by TCP alone",
    "GGML_VK_VISIBLE_DEVICES": "the Vulkan devices that are seen",
    "CUDA_VISIBLE_DEVICES": "the CUDA devices that are seen, in this order",
    "CUDA_DEVICE_ORDER": "how CUDA devices are numbered",
    "CUDA_LAUNCH_BLOCKING": "kernels run one after the other, which is slower",
    "HIP_VISIBLE_DEVICES": "the ROCm devices that are seen, in this order",
    "ROCR_VISIBLE_DEVICES": "the ROCm devices that are seen, in this order",
    "HSA_OVERRIDE_GFX_VERSION": "ROCm takes the card for another model",
}
"""The variables that change a library of llama.cpp, from the calls of getenv in its source, and
those of its drivers. (LLAMA_ARG_ and a name are options of its programs alone.)"""


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Return what this CPU can do, by llama.cpp's names; None where the system does not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    line = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    if line is None:
        return None
    flags = set(line[1].split())
    return frozenset(name for name, flag in CPU_FEATURES.items() if flag in flags)


def built_features(system_info: str) -> frozenset[str]:
    """Return what the CPU backend of a build uses, as llama.cpp's `system_info` says."""
    part = re.search(r"\bCPU : (.*?)(?:\| \w+ : |$)", system_info)
    words = re.findall(r"(\w+) = [1-9]", "" if part is None else part[1])
    return frozenset(words) & CPU_FEATURES.keys()


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that are set and change llama.cpp, as "NAME=VALUE" and what they do."""
    return {
        f"{name}={variables[name]}": what for name, what in ENVIRONMENT.items() if name in variables
    }
