"""Build llama.cpp for one NVIDIA GPU from the source package of llama-cpp-python.

    python -m tools.cuda_build build SOURCE OUT --architecture 90 [--wheel CUBLAS.whl]
    python -m tools.cuda_build reduce SDIST.tar.gz REDUCED.tar.gz

The first needs no GPU: the CUDA compiler, CMake and CPUs do, and where the toolkit has no cuBLAS,
the wheel nvidia-cublas from PyPI. OUT gets the shared libraries, which llama-cpp-python of the same
version loads from there where LLAMA_CPP_LIB_PATH names the folder, and the time is printed. The
second writes the part of a source package that the build needs, 3 MB that are easy to copy.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

_NEEDED = re.compile(
    r"""
    llama_cpp/.*\.(py|typed) | LICENSE\.md | PKG-INFO
    | vendor/llama\.cpp/(
        CMakeLists\.txt | LICENSE | (cmake|include|licenses|src|vendor)/.*
        | ggml/(CMakeLists\.txt | (cmake|include)/.* | src/[^/]+ | src/ggml-(cpu|cuda|rpc)/.*)
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
    source: Path,
    out: Path,
    *,
    architecture: str,
    jobs: int,
    wheels: Sequence[Path] = (),
    defines: Sequence[str] = (),
) -> float:
    """Compile llama.cpp for CUDA, copy its libraries into the folder `out`, and return the seconds.

    `architecture` is CMake's number, "90" for compute capability 9.0. `jobs` is the number of
    processes. `wheels` has that of cuBLAS where the toolkit lacks it. `defines` are further
    NAME=VALUE settings for CMake. Raises CalledProcessError where a command fails.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cuda-build-") as work:
        tree, libraries, binaries = (Path(work) / name for name in ("source", "wheels", "build"))
        tree.mkdir()
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(libraries)
        found = [*wheel_defines(libraries), *defines]
        subprocess.run(
            configuration(unpack(source, tree), binaries, architecture, found), check=True
        )
        target = ["--target", "llama", "--parallel", str(jobs)]
        subprocess.run(["cmake", "--build", str(binaries), *target], check=True)
        out.mkdir(parents=True, exist_ok=True)
        for library in sorted((binaries / "bin").glob("*.so*")):
            shutil.copy2(library, out, follow_symlinks=False)
    return time.monotonic() - start


def wheel_defines(folder: Path) -> list[str]:
    """Return the settings that let CMake find cuBLAS, of a wheel unpacked into `folder`.

    The wheels have no libcublas.so without a version, which CMake looks for.
    """
    libraries = {
        path.name[3:].partition(".")[0]: path
        for path in sorted(folder.glob("nvidia/*/lib/libcublas*.so.*"))
    }
    defines = [f"CUDA_{name}_LIBRARY={path}" for name, path in libraries.items()]
    if includes := " ".join(f"-I{path}" for path in sorted(folder.glob("nvidia/*/include"))):
        defines += [f"CMAKE_CUDA_FLAGS={includes}", f"CMAKE_CXX_FLAGS={includes}"]
    return defines


def configuration(
    tree: Path, folder: Path, architecture: str, defines: Sequence[str] = ()
) -> list[str]:
    """Return the CMake command that prepares the build in `folder`.

    Without a driver there is nothing to link the driver's memory functions with, and llama.cpp
    takes those of the runtime.
    """
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_ARCHITECTURES": architecture,
        "BUILD_SHARED_LIBS": "ON",
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
        "GGML_CUDA": "ON",
        "GGML_CUDA_NO_VMM": "OFF" if shutil.which("nvidia-smi") else "ON",
        **dict.fromkeys(_LIBRARIES_ONLY, "OFF"),
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    source = tree / "vendor" / "llama.cpp"
    given = [*(f"{name}={value}" for name, value in options.items()), *defines]
    settings = [f"-D{define}" for define in given]
    return ["cmake", "-S", str(source), "-B", str(folder), *generator, *settings]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="cuda_build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    builds = commands.add_parser("build", help="compile the libraries")
    builds.add_argument("source", type=Path, help="source package, whole, reduced or unpacked")
    builds.add_argument("out", type=Path, help="folder for the libraries")
    builds.add_argument("--architecture", required=True, help="90 for compute capability 9.0")
    builds.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    builds.add_argument("--wheel", type=Path, action="append", default=[], help="cuBLAS")
    builds.add_argument(
        "--define", action="append", default=[], metavar="NAME=VALUE", help="setting for CMake"
    )
    reduces = commands.add_parser("reduce", help="write the part of a source package that it needs")
    reduces.add_argument("source", type=Path)
    reduces.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "reduce":
        reduce(options.source, options.out)
        return
    seconds = build(
        options.source,
        options.out,
        architecture=options.architecture,
        jobs=options.jobs,
        wheels=options.wheel,
        defines=options.define,
    )
    for library in sorted(options.out.glob("*.so*")):
        if not library.is_symlink():
            print(f"{library.name}: {library.stat().st_size / 2**20:.1f} MiB")
    print(f"architecture {options.architecture}, {options.jobs} processes: {seconds:.0f} s")


if __name__ == "__main__":
    main()
