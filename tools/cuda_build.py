"""Build llama-cpp-python for one NVIDIA GPU from its source package, without network or pip.

    python -m tools.cuda_build SDIST.tar.gz REDUCED.tar.gz

writes the part of a source package that the build needs, 3 MB that are easy to copy. The CMake
project of llama.cpp is built directly, only for its shared libraries, and placed beside the Python
files as pip would install them.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[[Sequence[str]], object]
"""A function that runs a command to its end, and raises where it fails."""

_NEEDED = re.compile(
    r"""
    llama_cpp/.*\.(py|typed) | LICENSE\.md | PKG-INFO
    | vendor/llama\.cpp/(
        CMakeLists\.txt | LICENSE | (cmake|include|licenses|src|vendor)/.*
        | ggml/(CMakeLists\.txt | (cmake|include)/.* | src/[^/]+ | src/ggml-(cpu|cuda)/.*)
    )
    """,
    re.VERBOSE,
)
_LIBRARIES_ONLY = (
    "LLAMA_BUILD_APP",
    "LLAMA_BUILD_COMMON",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_SERVER",
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_TOOLS",
    "LLAMA_OPENSSL",
)


def reduce(source: Path, output: Path) -> None:
    """Write the members of the source package `source` that `build` needs to `output`."""
    with tarfile.open(source) as whole, tarfile.open(output, "w:gz", compresslevel=9) as part:
        for member in whole:
            _, _, name = member.name.partition("/")
            if member.isfile() and _NEEDED.fullmatch(name):
                part.addfile(member, whole.extractfile(member))


def unpack(source: Path, folder: Path) -> Path:
    """Unpack a source package, whole or reduced, into `folder`, and return its tree.

    Where `source` is a folder, return it as it is.
    """
    if source.is_dir():
        return source
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def build(
    tree: Path,
    site: Path,
    *,
    architecture: str,
    jobs: int,
    run: Run,
    defines: Sequence[str] = (),
) -> None:
    """Compile llama.cpp for CUDA, and put the package `llama_cpp` into the folder `site`.

    `architecture` is CMake's number, "90" for compute capability 9.0. `jobs` is the number of
    processes. `defines` are further NAME=VALUE settings for CMake.
    """
    folder = site.parent / "build"
    run([*configuration(tree, folder, architecture), *(f"-D{define}" for define in defines)])
    run(["cmake", "--build", str(folder), "--target", "llama", "--parallel", str(jobs)])
    package = site / "llama_cpp"
    shutil.copytree(tree / "llama_cpp", package, ignore=shutil.ignore_patterns("lib"))
    libraries = package / "lib"
    libraries.mkdir()
    for library in sorted((folder / "bin").glob("*.so*")):
        shutil.copy2(library, libraries, follow_symlinks=False)


def configuration(tree: Path, folder: Path, architecture: str) -> list[str]:
    """Return the CMake command that prepares the build in `folder`."""
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_ARCHITECTURES": architecture,
        "BUILD_SHARED_LIBS": "ON",
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
        "GGML_CUDA": "ON",
        **dict.fromkeys(_LIBRARIES_ONLY, "OFF"),
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    source = tree / "vendor" / "llama.cpp"
    defines = [f"-D{name}={value}" for name, value in options.items()]
    return ["cmake", "-S", str(source), "-B", str(folder), *generator, *defines]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tools.cuda_build SDIST.tar.gz REDUCED.tar.gz")
    reduce(Path(sys.argv[1]), Path(sys.argv[2]))
