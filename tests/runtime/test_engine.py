"""Another build of llama.cpp by its folder: found, compared with what is declared, identified."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ggufrope._format import without_home
from ggufrope.errors import MissingDependencyError, RequestError
from ggufrope.runtime import engine, library
from tests.runtime.stubs import NEEDS_COMPILER, installed, stub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="builds shared libraries for Linux")

SAY_VERSIONS = """
import json, sys
from ggufrope._plain import encode
from ggufrope.errors import GgufRopeError
from ggufrope.runtime import engine, library
from tests.runtime.stubs import NEEDS_COMPILER, installed, stub
try:
    engine.use_llama(sys.argv[1] if len(sys.argv) > 1 else None)
    print(json.dumps(encode(library.versions())))
except GgufRopeError as error:
    print(type(error).__name__, error)
"""


def say_versions(*folder: Path, **environment: str) -> str:
    """What a process that is told of a folder says of the llama.cpp it loads, or its error."""
    done = subprocess.run(
        [sys.executable, "-c", SAY_VERSIONS, *map(str, folder)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return done.stdout.strip()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with the installed libraries: another build as far as a process can tell."""
    folder = tmp_path / "build" / "bin"
    shutil.copytree(installed().parent, folder)
    return folder


@pytest.mark.llama
def test_a_folder_is_used_by_option_or_variable(copied: Path) -> None:
    by_option = json.loads(say_versions(copied))
    by_variable = json.loads(say_versions(LLAMA_CPP_LIB_PATH=str(copied)))
    own = json.loads(say_versions())
    assert by_option == by_variable
    assert by_option == own | {"own": False, "library": str(copied / "libllama.so")}
    assert own["own"] is own["tested"] is True
    assert len(own["library_sha256"]) == 64


@pytest.mark.llama
def test_the_home_of_the_user_is_in_no_record(copied: Path) -> None:
    home = copied.parents[1]
    found = json.loads(say_versions(copied, HOME=str(home)))
    assert found["library"] == "~/build/bin/libllama.so"
    assert without_home("/elsewhere/x") == "/elsewhere/x"


@pytest.mark.llama
def test_a_process_has_one_llama_cpp(copied: Path) -> None:
    library.load()
    engine.use_llama(None)
    with pytest.raises(RequestError, match=r"a process has one llama\.cpp"):
        engine.use_llama(copied)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "there is no such folder"),
        ("file", "it is a file; name its folder"),
        ("empty", "it has no libllama.so, the library of llama.cpp; build llama.cpp"),
        ("deeper", "it has no libllama.so, the library of llama.cpp; name .*deeper/build/bin"),
    ],
)
def test_a_folder_without_the_library_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "deeper" / "build" / "bin").mkdir(parents=True)
    (tmp_path / "deeper" / "build" / "bin" / "libllama.so").touch()
    with pytest.raises(MissingDependencyError, match=f"`llama_lib` .*{name}: {words}"):
        engine.use_llama(tmp_path / name)
    said = say_versions(LLAMA_CPP_LIB_PATH=str(tmp_path / name))
    assert said.startswith("MissingDependencyError LLAMA_CPP_LIB_PATH ")


@pytest.mark.llama
def test_a_file_that_is_no_library_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "libllama.so").write_text("not a library\n" * 100)
    said = say_versions(tmp_path)
    assert said.startswith(f"MissingDependencyError {tmp_path}/libllama.so does not load as a lib")
    assert "invalid ELF header" in said


@pytest.mark.llama
@NEEDS_COMPILER
def test_a_library_that_is_not_llama_cpp_is_said_to_be_none(tmp_path: Path) -> None:
    folder = stub(tmp_path / "other", "int other(void) { return 0; }", linked=False)
    assert "libllama.so is not llama.cpp: it has no function llama_backend_init" in say_versions(
        folder
    )


@pytest.mark.llama
@NEEDS_COMPILER
def test_a_version_that_lacks_a_function_is_named(tmp_path: Path) -> None:
    folder = stub(tmp_path / "old", "void llama_backend_init(void) {}", linked=False)
    said = say_versions(folder)
    assert (
        "is another version of llama.cpp than the installed llama-cpp-python was made for" in said
    )
    assert "it has no function llama_" in said


DEFAULTS = """
#include <string.h>
struct parameters {{ char bytes[{size}]; }};
struct parameters {function}(void) {{
    struct parameters result;
    memset(&result, {byte}, sizeof result);
    return result;
}}
"""


@pytest.mark.llama
@NEEDS_COMPILER
@pytest.mark.parametrize("function", ["llama_context_default_params", "llama_model_default_params"])
@pytest.mark.parametrize("more", [-8, 0, 8, 2000])
def test_structures_of_another_version_are_refused(
    tmp_path: Path, function: str, more: int
) -> None:
    """The stub's structure is longer or shorter, or of the same length and has other fields."""
    kind = function.replace("_default", "")
    size = ctypes.sizeof(getattr(library.load(), kind)) + more
    source = DEFAULTS.format(size=size, function=function, byte=0 if more else 7)
    said = say_versions(stub(tmp_path / "stub", source, linked=True))
    assert said.startswith("MissingDependencyError")
    assert "would be called wrongly" in said
    if more:
        assert f"its {kind} has {size} bytes where {size - more} were expected" in said
    else:
        assert f"its {kind} has " in said


@pytest.mark.llama
@NEEDS_COMPILER
def test_a_stub_that_changes_nothing_is_accepted(tmp_path: Path) -> None:
    folder = stub(tmp_path / "same", "int other(void) { return 0; }", linked=True)
    assert json.loads(say_versions(folder))["own"] is False


@pytest.mark.parametrize("size", [1, 16, 57, 200])
def test_the_size_of_a_returned_structure_is_what_is_written(size: int) -> None:
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)

    def fill(memory: int, _nothing: Any, _zero: int) -> None:
        ctypes.memset(memory, 3, size)

    assert engine._size_returned(kind(fill)) == size
