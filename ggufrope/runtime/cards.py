"""The graphics cards of this machine, seen without llama.cpp, and the command that installs
llama-cpp-python for them.

The package comes as source, and what it is built for is chosen when it is built: the names of the
backends are those of llama.cpp's docs/build.md.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ggufrope.runtime.engine import INSTALL_COMMAND
from ggufrope.runtime.library import TESTED_VERSIONS

Maker: TypeAlias = Literal["NVIDIA", "AMD", "Intel", "Apple"]

_VENDORS: dict[str, Maker] = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
"""PCI vendor identifiers, as Linux shows them."""
_BACKENDS: dict[Maker, str] = {
    "NVIDIA": "GGML_CUDA",
    "AMD": "GGML_HIP",
    "Intel": "GGML_VULKAN",
    "Apple": "GGML_METAL",
}
_TOOLS: dict[Maker, tuple[str, str]] = {
    "NVIDIA": ("nvcc", "the CUDA toolkit"),
    "AMD": ("hipcc", "ROCm"),
    "Intel": ("glslc", "the Vulkan SDK"),
    "Apple": ("clang", "Xcode's command line tools"),
}
"""What the build for a maker's cards needs: a program of it, and the name of the whole."""
_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A graphics card. `capability` is the compute capability of an NVIDIA card, as "9.0"."""

    maker: Maker
    name: str
    capability: str | None = None


def cards() -> tuple[Card, ...]:
    """Return the cards that the system shows; those that llama.cpp runs fastest on come first."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return (Card(maker="Apple", name="Apple silicon"),)
    found = [*_nvidia()]
    makers = {card.maker for card in found}
    found += [Card(maker=each, name=f"{each} graphics") for each in _on_the_bus() - makers]
    return tuple(sorted(found, key=lambda card: list(_BACKENDS).index(card.maker)))


def _nvidia() -> list[Card]:
    """Return the cards that NVIDIA's driver lists."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    lines = re.findall(r"^(.{1,100}), (\d{1,2}\.\d)$", done.stdout, re.MULTILINE)
    return [Card(maker="NVIDIA", name=name, capability=number) for name, number in lines]


def _on_the_bus() -> set[Maker]:
    """Return the makers of the graphics cards that Linux lists."""
    found = set()
    for path in Path("/sys/class/drm").glob("card*/device/vendor"):
        try:
            found.add(_VENDORS[path.read_text(encoding="ascii").strip()])
        except (OSError, KeyError, ValueError):
            continue
    return found


def install_command(seen: tuple[Card, ...], *, again: bool = False) -> str:
    """Return the command that installs llama-cpp-python for the first of these cards.

    Without cards it is for the CPU. `again` replaces a build that is there.
    """
    first, beyond = TESTED_VERSIONS
    # Without pip's cache, which has what was built with other settings under the same name.
    words = INSTALL_COMMAND.replace("install", "install --no-cache-dir")
    if again:
        package = f'"llama-cpp-python>={first},<{beyond}"'
        words = f"pip install --no-cache-dir --force-reinstall {package}"
    if not seen:
        return words
    settings = f"-D{_BACKENDS[seen[0].maker]}=on"
    numbers = {card.capability for card in seen if card.capability is not None}
    if numbers:
        architectures = sorted(number.replace(".", "") for number in numbers)
        settings += f" -DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}"
    if os.name == "nt":
        return f"$env:CMAKE_ARGS='{settings}'; {words}"
    return f'CMAKE_ARGS="{settings}" {words}'


def missing_tool(seen: tuple[Card, ...]) -> str | None:
    """Return what the build for these cards needs and this machine lacks, None for nothing."""
    if not seen:
        return None
    program, whole = _TOOLS[seen[0].maker]
    return None if shutil.which(program) else f"{whole} ({program})"
