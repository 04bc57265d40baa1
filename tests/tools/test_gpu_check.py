"""tools/gpu-check, as far as it runs on a machine without a GPU."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ggufrope.container.shards import open_model
from ggufrope.runs.plan import parse_plan
from ggufrope.runtime import library
from ggufrope.runtime.model import Model
from tools import cuda_build, gpu_check, gpu_phases, random_model

TINY = random_model.SHAPES["tiny"]


@pytest.fixture(scope="module")
def checked(root: Path, nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole check on the CPU, with the nano model in place of SmolLM2."""
    out = tmp_path_factory.mktemp("check") / "out"
    command = [str(root / "tools" / "gpu-check"), str(out), "--cpu", "--model", str(nano)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def result(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.mark.llama
def test_every_phase_is_recorded_with_its_time(checked: Path) -> None:
    statuses = {phase["name"]: phase["status"] for phase in result(checked)["phases"]}
    assert statuses == {
        "card": "skipped",
        "packages": "ok",
        "doctor installed": "ok",
        "tests": "ok",
        "needles none": "ok",
        "needles yarn": "ok",
        "speeds of smollm2 installed": "ok",
        "random model": "ok",
        "speeds of random-tiny installed": "ok",
        "places": "ok",
    }
    doctor = result(checked)["phases"][2]
    assert doctor["seconds"] > 0


@pytest.mark.llama
def test_every_pair_of_cache_types_has_speeds_and_what_doctor_says(checked: Path) -> None:
    speeds = result(checked)["speeds"]
    pairs = {(row["model"], row["kv"]) for row in speeds}
    large = {f"{kv}/{kv}" if "/" not in kv else kv for kv in gpu_check.LARGE_PAIRS}
    assert pairs == {
        *(("smollm2", f"{k}/{v}") for k in gpu_check.TYPES for v in gpu_check.TYPES),
        *(("random-tiny", kv) for kv in large),
    }
    assert len(speeds) == len(pairs)
    assert all(row["prefill"] > 0 and row["decode"] > 0 for row in speeds)
    assert not any(row["share"] is None for row in speeds)
    if not library.can_offload():
        assert {row["says"] for row in speeds} == {"native"}


@pytest.mark.llama
def test_needles_are_found_as_it_is_and_by_yarn(checked: Path) -> None:
    needles = result(checked)["needles"]
    (plain,), (scaled,) = needles["none"]["summary"], needles["yarn"]["summary"]
    assert (plain["context_tokens"], scaled["context_tokens"]) == (256, 512)
    assert plain["metrics"]["recall"]["value"] == 1.0


@pytest.mark.llama
def test_layers_and_cache_are_put_on_the_gpu_and_off_it(checked: Path) -> None:
    rows = result(checked)["places"]
    places = {(row["gpu_layers"], row["offload_kqv"]) for row in rows}
    assert places == {("all", True), ("all", False), (0, True), (0, False)}
    assert all(row["decode"] > 0 for row in rows)
    assert all(row["cache_on"] == ["CPU"] for row in rows if row["gpu_layers"] == 0)


@pytest.mark.llama
def test_skipped_gpu_tests_say_why(checked: Path) -> None:
    (phase,) = [phase for phase in result(checked)["phases"] if phase["name"] == "tests"]
    details = phase["details"]
    assert (details["failure"], details["error"]) == (0, 0)
    if not details["passed"]:
        (reason,) = details["reasons"]
        assert "GPU" in reason


@pytest.mark.llama
def test_the_page_has_the_phases_and_the_speeds(checked: Path) -> None:
    page = (checked / "result.html").read_text(encoding="utf-8")
    assert "speeds of random-tiny installed" in page
    assert "Decode of smollm2, build installed" in page
    assert "http" not in page


def test_without_a_gpu_the_next_phases_run_and_the_check_fails(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = gpu_check.parse_options(
        [str(tmp_path / "out"), "--model", str(tmp_path / "none"), "--minutes=0"]
    )
    options.out.mkdir()
    (tmp_path / "work").mkdir()
    check = gpu_check.GpuCheck(options, tmp_path / "work")
    assert not check.run()
    phases = {phase.name: phase for phase in check.phases.done}
    assert "nvidia-smi does not answer" in phases["card"].reason
    assert "give it with --model" in phases["packages"].reason
    assert "no time is left" in phases["doctor installed"].reason
    assert phases["places"].status == "failed"
    assert "no GPU" in (options.out / "result.html").read_text()


def test_commands_use_the_libraries_of_the_build(tmp_path: Path) -> None:
    builds = [tmp_path / name / "bin" for name in ("default", "all-pairs")]
    arguments = [str(tmp_path / "out"), *(f"--build={build}" for build in builds), "--cpu"]
    (tmp_path / "out").mkdir()
    check = gpu_check.GpuCheck(gpu_check.parse_options(arguments), tmp_path)
    with check.phases.phase("environment", seconds=60):
        code = "import os; print(os.environ['LLAMA_CPP_LIB_PATH'])"
        (used,) = check._run(sys.executable, "-c", code).splitlines()
    assert used == str(builds[0])
    assert check.environment["LD_LIBRARY_PATH"].startswith(f"{builds[0]}")
    assert list(gpu_check.names_of(builds)) == ["default", "all-pairs"]
    assert list(gpu_check.names_of([builds[0], builds[0]])) == ["default", "1"]


def test_python_files_of_llama_cpp_come_from_the_source_package(
    sdist: Path, nano: Path, tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "out"), "--cpu", f"--source={sdist}", f"--model={nano}"]
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    check = gpu_check.GpuCheck(gpu_check.parse_options(arguments), tmp_path / "work")
    check._packages()
    assert check.phases.done[0].status == "ok"
    found = {path.name for path in (tmp_path / "work" / "site" / "llama_cpp").iterdir()}
    assert found == {"llama_cpp.py", "py.typed"}


def test_a_pair_is_unexpected_where_its_speed_is_not_what_doctor_says() -> None:
    speeds = {"f16": 100.0, "q8_0": 90.0, "q8_0/q4_0": 20.0, "iq4_nl": 10.0, "q4_0": 95.0}
    speeds["f16/q8_0"] = 95.0
    cells = [
        {
            "cell": {"kv": kv},
            "reason": None,
            "metrics": {"decode_tokens_per_second": {"value": speed}},
        }
        for kv, speed in speeds.items()
    ]
    says = {f"{kv}/{kv}": "native" for kv in ("f16", "q8_0")}
    says |= {"q8_0/q4_0": "native", "iq4_nl/iq4_nl": "cpu", "q4_0/q4_0": "cpu"}
    says["f16/q8_0"] = "converted"
    rows = {row["kv"]: row for row in map(gpu_check.cell_row, cells)}
    gpu_check.compare(list(rows.values()), says)
    assert rows["q8_0/q8_0"]["share"] == 0.9
    unexpected = {kv for kv, row in rows.items() if row["unexpected"]}
    assert unexpected == {"q8_0/q4_0", "q4_0/q4_0"}


def test_the_plan_is_valid() -> None:
    plan = parse_plan(gpu_check.plan_text(Path("a.gguf"), ["f16", "q8_0/q4_0"], gpu_check.GPU))
    assert plan.runtime.threads is None
    assert (plan.contexts, plan.kv, plan.tasks) == ((8192,), ("f16", "q8_0/q4_0"), ("kv-cache",))


# nvidia-smi ---------------------------------------------------------------------------------------


def test_load_is_the_mean_of_the_busiest_gpu_and_the_peak_of_all() -> None:
    assert gpu_phases.parse_load(
        "0, 50 %, 100 MiB\n1, 0 %, 900 MiB\n0, 100 %, 300 MiB\n1, 10 %, 2 MiB\n0, 9"
    ) == (75, 900)
    assert gpu_phases.parse_load("0, [N/A], [N/A]\n") == (None, None)


def test_a_command_that_fails_is_recorded_with_the_end_of_its_log(tmp_path: Path) -> None:
    phases = gpu_phases.Phases(tmp_path, minutes=1)
    with phases.phase("one", seconds=60):
        phases.run([sys.executable, "-c", "import sys; sys.exit('no such luck')"], environment={})
    assert phases.done[0].status == "failed"
    assert phases.done[0].reason.startswith("exit status 1:")
    assert phases.done[0].reason.endswith("no such luck")


@pytest.mark.parametrize(("minutes", "seconds"), [(0.02, 60.0), (1.0, 1.0)])
def test_a_command_is_stopped_with_its_children_when_no_time_is_left(
    minutes: float, seconds: float, tmp_path: Path
) -> None:
    phases = gpu_phases.Phases(tmp_path, minutes=minutes)
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with phases.phase("one", seconds=seconds):
        phases.run([sys.executable, "-c", parent], environment={})
    assert phases.done[0].reason.startswith("stopped after the ")
    assert phases.done[0].seconds < 30


# the build ----------------------------------------------------------------------------------------

SDIST = {
    "PKG-INFO": True,
    "llama_cpp/llama_cpp.py": True,
    "llama_cpp/py.typed": True,
    "vendor/llama.cpp/CMakeLists.txt": True,
    "vendor/llama.cpp/cmake/common.cmake": True,
    "vendor/llama.cpp/src/models/llama.cpp": True,
    "vendor/llama.cpp/ggml/src/ggml.c": True,
    "vendor/llama.cpp/ggml/src/ggml-cuda/template-instances/fattn.cu": True,
    "vendor/llama.cpp/ggml/src/ggml-vulkan/ggml-vulkan.cpp": False,
    "vendor/llama.cpp/models/vocab.gguf": False,
    "vendor/llama.cpp/tools/server/server.cpp": False,
    "docs/index.md": False,
}


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    path = tmp_path / "sdist.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in SDIST:
            member = tarfile.TarInfo(f"llama_cpp_python-1.0/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return path


def test_the_reduced_package_has_what_the_build_needs(sdist: Path, tmp_path: Path) -> None:
    reduced = tmp_path / "reduced.tar.gz"
    cuda_build.reduce(sdist, reduced)
    (tmp_path / "tree").mkdir()
    tree = cuda_build.unpack(reduced, tmp_path / "tree")
    kept = {path.relative_to(tree).as_posix(): path for path in tree.rglob("*") if path.is_file()}
    assert set(kept) == {name for name, needed in SDIST.items() if needed}
    assert all(path.read_text() == name for name, path in kept.items())
    assert cuda_build.unpack(tree, tmp_path) == tree


def test_a_build_leaves_the_libraries(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMake is a script here, which writes the files that CMake would."""
    tools = tmp_path / "bin"
    tools.mkdir()
    script = """#!/bin/sh
echo "$@" >> $CALLS
[ "$1" = --build ] && mkdir -p $2/bin && echo code > $2/bin/libllama.so.1
[ "$1" != --build ] || ln -s libllama.so.1 $2/bin/libllama.so
"""
    (tools / "cmake").write_text(script)
    (tools / "cmake").chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    wheel = tmp_path / "cublas.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nvidia/cu13/lib/libcublas.so.13", "code")
        archive.writestr("nvidia/cu13/include/cublas_v2.h", "code")
    out = tmp_path / "libraries"
    seconds = cuda_build.build(
        sdist, out, architecture="90", jobs=16, wheels=[wheel], defines=["A=B"]
    )
    assert seconds > 0
    configure, compile_ = (tmp_path / "calls").read_text().splitlines()
    for setting in ("GGML_CUDA=ON", "CMAKE_CUDA_ARCHITECTURES=90", "A=B"):
        assert f"-D{setting}" in configure
    assert re.search(r"-DCUDA_cublas_LIBRARY=\S+/libcublas\.so\.13", configure)
    assert re.search(r"-DCMAKE_CUDA_FLAGS=-I\S+/nvidia/cu13/include", configure)
    assert compile_.endswith("--target llama --parallel 16")
    assert (out / "libllama.so").is_symlink()
    assert (out / "libllama.so").read_text() == "code\n"


@pytest.mark.parametrize("has_driver", [True, False])
def test_without_a_driver_nothing_is_linked_with_it(
    has_driver: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if has_driver:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    command = cuda_build.configuration(tmp_path, tmp_path / "build", "90")
    assert f"-DGGML_CUDA_NO_VMM={'OFF' if has_driver else 'ON'}" in command


# the random model ---------------------------------------------------------------------------------


@pytest.mark.llama
def test_the_random_model_runs(tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    random_model.write(path, TINY)
    with Model.open(path) as model:
        assert (model.n_layer, model.n_embd, model.n_head_kv) == (2, 64, 1)
        assert model.detokenize(model.tokenize("the mill")) == "the mill"


def test_a_hollow_model_has_the_size_of_a_model_and_takes_no_disk(tmp_path: Path) -> None:
    whole, hollow = tmp_path / "whole.gguf", tmp_path / "hollow.gguf"
    random_model.write(whole, TINY)
    random_model.write(hollow, TINY, hollow=True)
    assert hollow.stat().st_size == whole.stat().st_size
    assert hollow.stat().st_blocks < whole.stat().st_blocks
    assert open_model(hollow).tensors == open_model(whole).tensors


def test_eight_billion_parameters_are_eight_billion() -> None:
    sizes = [
        shape[0] * (shape[1] if len(shape) == 2 else 1)
        for _, shape in random_model.SHAPES["8b"].tensors()
    ]
    assert sum(sizes) == 8_030_261_248  # as Meta-Llama-3-8B's index has it


def test_the_command_can_be_executed(root: Path) -> None:
    assert (root / "tools" / "gpu-check").stat().st_mode & stat.S_IXUSR
