"""The graphics cards of this machine, seen without llama.cpp, and the commands that install
llama-cpp-python for them.

The package comes as source, and what it is built for is chosen when it is built: the names of the
backends and of their settings are those of llama.cpp's docs/build.md. Its maintainers have an index
of built wheels too, which its README lists.
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
_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl/"
_CUDA_WHEELS = {
    (11, 8): (6.0, 8.9),
    (12, 1): (6.0, 99.0),
    (12, 2): (6.0, 99.0),
    (12, 3): (6.0, 99.0),
    (12, 4): (6.0, 99.0),
    (12, 5): (6.0, 99.0),
    (13, 0): (7.5, 99.0),
    (13, 2): (7.5, 99.0),
}
"""The CUDA versions that there are wheels for, and the compute capabilities that each has."""
_OTHER_WHEELS: dict[tuple[Maker, str], str] = {
    ("Apple", "darwin"): "metal",
    ("AMD", "linux"): "rocm72",
    ("AMD", "win32"): "hip-radeon",
    ("Intel", "linux"): "vulkan",
    ("Intel", "win32"): "vulkan",
}
_PACKAGE = f'"llama-cpp-python>={TESTED_VERSIONS[0]},<{TESTED_VERSIONS[1]}"'
_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A graphics card.

    Of an NVIDIA card, `capability` is the compute capability, as "9.0", and `cuda` the newest
    version of CUDA that its driver runs, as "13.0".
    """

    maker: Maker
    name: str
    capability: str | None = None
    cuda: str | None = None


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
    query = "--query-gpu=name,compute_cap", "--format=csv,noheader"
    listed = _output(program, *query)
    lines = re.findall(r"^(.{1,100}), (\d{1,2}\.\d)$", listed, re.MULTILINE)
    version = re.search(r"CUDA (?:UMD )?Version\s*: (\d+\.\d+)", _output(program) if lines else "")
    cuda = None if version is None else version[1]
    return [Card(maker="NVIDIA", name=name, capability=number, cuda=cuda) for name, number in lines]


def _output(*command: str) -> str:
    """Return what a program prints, nothing where it fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout


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
    """Return the command that builds and installs llama-cpp-python for the first of these cards.

    Without cards it is for the CPU. `again` replaces a build that is there. Kernels for every pair
    of K/V cache types are built where that is a choice.
    """
    # Without pip's cache, which has what was built with other settings under the same name.
    words = INSTALL_COMMAND.replace("install", "install --no-cache-dir")
    if again:
        words = f"pip install --no-cache-dir --force-reinstall {_PACKAGE}"
    if not seen:
        return words
    settings = f"-D{_BACKENDS[seen[0].maker]}=on"
    if seen[0].maker in ("NVIDIA", "AMD"):
        settings += " -DGGML_CUDA_FA_QUANTS=all"
    numbers = {card.capability for card in seen if card.capability is not None}
    if numbers:
        architectures = sorted(int(number.replace(".", "")) for number in numbers)
        settings += f" -DCMAKE_CUDA_ARCHITECTURES={';'.join(map(str, architectures))}"
    if os.name == "nt":
        return f"$env:CMAKE_ARGS='{settings}'; {words}"
    return f'CMAKE_ARGS="{settings}" {words}'


def wheel_command(seen: tuple[Card, ...]) -> str | None:
    """Return the command that installs a built wheel for the first of these cards.

    None where there is no such wheel. Wheels may be older than the version that is required; then
    the command fails and changes nothing.
    """
    if not seen:
        return None
    card = seen[0]
    folder = _OTHER_WHEELS.get((card.maker, sys.platform))
    if card.cuda is not None and card.capability is not None:
        driver = tuple(map(int, card.cuda.split(".")))
        capability = float(card.capability)
        fitting = [
            version
            for version, (least, most) in _CUDA_WHEELS.items()
            if version <= driver and least <= capability <= most
        ]
        folder = "cu{}{}".format(*max(fitting)) if fitting else None
    if folder is None:
        return None
    only = "--force-reinstall --only-binary llama-cpp-python"
    return f"pip install {only} {_PACKAGE} --extra-index-url {_WHEELS}{folder}"


def missing_tool(seen: tuple[Card, ...]) -> str | None:
    """Return what the build for these cards needs and this machine lacks, None for nothing."""
    if not seen:
        return None
    program, whole = _TOOLS[seen[0].maker]
    return None if shutil.which(program) else f"{whole} ({program})"
