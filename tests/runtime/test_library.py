"""Loading llama.cpp, its versions and devices, and its log."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ggufrope.runtime import library
from ggufrope.runtime.doctor import version_problem

if TYPE_CHECKING:
    from pathlib import Path


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_importing_the_runtime_does_not_load_llama_cpp() -> None:
    assert "False" in run(
        "import sys, ggufrope.runtime.context, ggufrope.runtime.fake, ggufrope.runtime.probe\n"
        "print('llama_cpp' in sys.modules)"
    )


def test_without_llama_cpp_python_the_error_has_the_command() -> None:
    output = run(
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from ggufrope.errors import MissingDependencyError\n"
        "from ggufrope.runtime import library\n"
        "try: library.versions()\n"
        "except MissingDependencyError as error: print(error)"
    )
    assert 'pip install "ggufrope[llama]"' in output
    assert len(output.splitlines()) == 1


def test_a_broken_llama_cpp_python_is_not_reported_as_absent() -> None:
    output = run(
        "import sys, types; sys.modules['llama_cpp'] = types.ModuleType('llama_cpp')\n"
        "class Broken:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'llama_cpp.llama_cpp': raise OSError('libllama.so: cannot open')\n"
        "sys.meta_path.insert(0, Broken()); sys.modules['llama_cpp'].__path__ = []\n"
        "from ggufrope.errors import MissingDependencyError\n"
        "from ggufrope.runtime import library\n"
        "try: library.load()\n"
        "except MissingDependencyError as error: print(error)"
    )
    assert "does not load (libllama.so: cannot open)" in output


@pytest.mark.llama
def test_nothing_reaches_stderr(smollm2: object) -> None:
    code = (
        "from ggufrope import Context, ContextSettings, Model\n"
        f"with Model.open({str(smollm2)!r}) as model:\n"
        "    with Context(model, ContextSettings(n_ctx=256)) as context: context.extend([5])"
    )
    assert run(code) == ""


@pytest.mark.llama
def test_versions_and_devices_of_the_installed_library() -> None:
    versions = library.versions()
    assert library.is_tested(versions.llama_cpp_python)
    assert versions.commit
    assert "CPU" in versions.system_info
    kinds = {device.kind for device in library.devices()}
    assert "cpu" in kinds
    assert library.can_offload() or kinds <= {"cpu", "accelerator"}


@pytest.mark.llama
def test_captures_nest_and_lines_are_whole(smollm2: object) -> None:
    from ggufrope.runtime.model import Model

    with library.capture() as outer, library.capture() as inner:
        Model.open(str(smollm2)).close()
    assert outer.lines == inner.lines
    assert not any("\n" in line for line in outer.lines)
    assert outer.search(r"^print_info: n_ctx_train += 8192$")
    assert outer.errors == []
    assert outer.reason is None


def test_the_reason_is_the_first_error_without_function_names() -> None:
    log = library.Log(
        errors=[
            "llama_model_load: error loading model: check_tensor_dims: tensor 'x' has wrong shape",
            "llama_model_load_from_file_impl: failed to load model",
        ]
    )
    assert log.reason == "tensor 'x' has wrong shape"


@pytest.mark.parametrize(
    ("line", "reason"),
    [("main: out of memory", "out of memory"), ("no colon here", "no colon here")],
)
def test_plain_errors_are_kept(line: str, reason: str) -> None:
    assert library.Log(errors=[line]).reason == reason


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("0.3.36", True),
        ("0.3.36+cu124", True),
        ("0.3.35", False),
        ("0.3.37", False),
        ("0.4.0", False),
        ("0.10.0", False),
    ],
)
def test_a_version_outside_the_tested_ones_is_reported(version: str, tested: bool) -> None:
    assert library.is_tested(version) is tested
    assert f"llama-cpp-python {version} " in version_problem(version)


def test_the_tested_versions_are_those_that_are_installed(root: Path) -> None:
    first, beyond = library.TESTED_VERSIONS
    requirement = f'"llama-cpp-python>={first},<{beyond}"'
    assert (root / "pyproject.toml").read_text(encoding="utf-8").count(requirement) == 1
