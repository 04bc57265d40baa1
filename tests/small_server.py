"""An RPC server whose CPU says how much memory it has: `small_server.py HOST:PORT BYTES [LESS]`.

With LESS it has only so many bytes more than it has taken when it begins, whatever it says.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

from ggufrope.runtime import library
from ggufrope.runtime.rpc_server import serve

SIZE = ctypes.POINTER(ctypes.c_size_t)
GET_MEMORY = 2
"""Place of the function in ggml_backend_device_i, with which a device begins."""


def limit(size: int) -> None:
    """Let this process take `size` bytes more."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def memory(_device: int, free: Any, total: Any) -> None:
    free[0] = total[0] = int(sys.argv[2])


(cpu,) = (device for device in library.found_devices() if device.kind == "cpu")
functions = ctypes.cast(cpu.handle, ctypes.POINTER(ctypes.c_void_p))
callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, SIZE, SIZE)(memory)
functions[GET_MEMORY] = ctypes.cast(callback, ctypes.c_void_p).value
if len(sys.argv) > 3:
    limit(int(sys.argv[3]))
serve(sys.argv[1], [cpu.name], threads=1)
