"""tools/gpu-check, as far as it runs on a machine without a GPU."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Sequence
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


def test_every_phase_is_recorded_with_its_time(checked: Path) -> None:
    statuses = {phase["name"]: phase["status"] for phase in result(checked)["phases"]}
    assert statuses == {
        "card": "skipped",
        "build": "skipped",
        "doctor": "ok",
        "tests": "ok",
        "smollm2": "ok",
        "random model": "ok",
        "matrix of smollm2": "ok",
        "matrix of random-tiny": "ok",
        "report": "ok",
    }
    doctor = result(checked)["phases"][2]
    assert doctor["seconds"] > 0


def test_the_matrix_has_a_speed_for_every_model_cache_type_and_length(checked: Path) -> None:
    cells = [cell for cell in result(checked)["run"]["cells"] if cell["cell"]["task"] == "kv-cache"]
    places = {(c["cell"]["model"], c["cell"]["kv"], c["cell"]["context_tokens"]) for c in cells}
    assert places == {
        (model, kv, context)
        for model in ("smollm2", "random-tiny")
        for kv in gpu_check.CACHES
        for context in gpu_check.CPU_CONTEXTS
    }
    assert len(cells) == len(places) == 2 * len(gpu_check.CACHES) * len(gpu_check.CPU_CONTEXTS)
    for cell in cells:
        assert cell["status"] == "ok"
        assert cell["metrics"]["prefill_tokens_per_second"]["value"] > 0
        assert cell["metrics"]["decode_tokens_per_second"]["value"] > 0


def test_skipped_gpu_tests_say_why(checked: Path) -> None:
    (phase,) = [phase for phase in result(checked)["phases"] if phase["name"] == "tests"]
    details = phase["details"]
    assert (details["failure"], details["error"]) == (0, 0)
    if not details["passed"]:
        assert details["reasons"] == ["this build of llama.cpp cannot use a GPU"]


def test_the_page_has_the_phases_and_the_report(checked: Path) -> None:
    page = (checked / "result.html").read_text(encoding="utf-8")
    assert "matrix of random-tiny" in page
    assert 'srcdoc="&lt;!doctype html' in page
    assert "gpu-check" in page
    assert "http" not in page.partition("<iframe")[0]


def test_without_a_gpu_the_next_phases_run_and_the_check_fails(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = gpu_check.parse_options(
        [str(tmp_path / "out"), "--shape", "tiny", "--model", str(tmp_path / "none"), "--minutes=0"]
    )
    options.out.mkdir()
    (tmp_path / "work").mkdir()
    check = gpu_check.GpuCheck(options, tmp_path / "work")
    assert not check.run()
    phases = {phase.name: phase for phase in check.phases.done}
    assert "nvidia-smi does not answer" in phases["card"].reason
    assert phases["build"].reason == "no GPU to build for"
    assert "give the file with --model" in phases["smollm2"].reason
    assert "no time is left" in phases["doctor"].reason
    assert "No run was stored" in (options.out / "result.html").read_text()


def test_with_a_gpu_the_package_that_was_built_is_used(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU and the compilers are scripts here; what they build is the installed llama.cpp."""
    installed = Path(str(library.load().__file__)).parent
    sdist = tmp_path / "sdist.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for module in installed.glob("*.py"):
            archive.add(module, f"llama_cpp_python-1.0/llama_cpp/{module.name}")
    tools = tmp_path / "bin"
    tools.mkdir()
    libraries = f"{installed}/lib/libggml*.so* {installed}/lib/libllama.so*"
    for name, script in {
        "nvidia-smi": "echo 'NVIDIA Pretend, 9.0, 1024, 1.0'",
        "nvcc": "echo release 13.0",
        "cmake": f'[ "$1" != --build ] || {{ mkdir -p $2/bin && cp -P {libraries} $2/bin; }}',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    wanted = [str(tmp_path / "out"), "--source", str(sdist), "--model", str(nano)]
    options = gpu_check.parse_options([*wanted, "--shape", "tiny", "--contexts", "256"])
    options.out.mkdir()
    (tmp_path / "work").mkdir()
    check = gpu_check.GpuCheck(options, tmp_path / "work")
    passed = check.run()
    ends = {phase.name: (phase.status, phase.reason) for phase in check.phases.done}
    assert ends["card"] == ends["packages"] == ends["build"] == ("ok", "")
    assert result(options.out)["cards"][0]["architecture"] == "90"
    assert ends["matrix of smollm2"] == ends["report"] == ("ok", "")
    if not library.can_offload():
        assert ends["doctor"] == ("failed", "this build of llama.cpp cannot use a GPU")
        assert not passed
    where = [sys.executable, "-c", "import llama_cpp; print(llama_cpp.__file__)"]
    found = subprocess.run(
        where, env=check.environment, check=True, capture_output=True, text=True
    ).stdout
    assert Path(found).is_relative_to(tmp_path / "work" / "site")


def test_the_plan_is_valid() -> None:
    plan = parse_plan(gpu_check.plan_text([Path("a.gguf")], gpu_check.CONTEXTS))
    assert (plan.contexts, plan.kv) == (gpu_check.CONTEXTS, gpu_check.CACHES)
    assert plan.thresholds.recall == 0


def test_options() -> None:
    assert gpu_check.parse_options(["out"]).contexts[-1] == 131072
    assert gpu_check.parse_options(["out", "--quick"]).contexts == (8192, 16384)
    options = gpu_check.parse_options(["out", "--contexts", "8k,100", "--cpu"])
    assert (options.contexts, options.shape) == ((8192, 100), "tiny")


# nvidia-smi ---------------------------------------------------------------------------------------


def test_cards_are_read() -> None:
    (card, other) = gpu_phases.parse_cards(
        "NVIDIA H200, 9.0, 143771, 580.159.03\nNVIDIA GeForce RTX 5090, 12.0, 32607, 580.10\n"
    )
    assert card == gpu_phases.Card(
        name="NVIDIA H200", architecture="90", memory_mib=143771, driver="580.159.03"
    )
    assert other.architecture == "120"


def test_load_is_the_mean_of_the_busiest_gpu_and_the_peak_of_all() -> None:
    assert gpu_phases.parse_load("0, 50, 100\n1, 0, 900\n0, 100, 300\n1, 10, 2\n0, 9") == (75, 900)
    assert gpu_phases.parse_load("0, [N/A], [N/A]\n") == (None, None)


def test_a_command_that_fails_is_recorded_with_the_end_of_its_log(tmp_path: Path) -> None:
    phases = gpu_phases.Phases(tmp_path, minutes=1)
    with phases.phase("one"):
        phases.run([sys.executable, "-c", "import sys; sys.exit('no such luck')"], environment={})
    assert phases.done[0].status == "failed"
    assert phases.done[0].reason.startswith("exit status 1:")
    assert phases.done[0].reason.endswith("no such luck")


def test_a_command_is_stopped_when_no_time_is_left(tmp_path: Path) -> None:
    phases = gpu_phases.Phases(tmp_path, minutes=0.02)
    with phases.phase("one"):
        phases.run([sys.executable, "-c", "import time; time.sleep(60)"], environment={})
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


def test_a_build_places_the_files_as_pip_would(sdist: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    tree = cuda_build.unpack(sdist, tmp_path / "tree")
    commands: list[Sequence[str]] = []

    def compiler(command: Sequence[str]) -> None:
        """Write the files that CMake would."""
        commands.append(command)
        binaries = tmp_path / "build" / "bin"
        binaries.mkdir(parents=True, exist_ok=True)
        (binaries / "libllama.so.1").write_text("code")
        if "--build" in command:
            (binaries / "libllama.so").symlink_to("libllama.so.1")

    site = tmp_path / "site"
    cuda_build.build(tree, site, architecture="90", jobs=16, run=compiler, defines=["A=B"])
    configure, compile_ = commands
    assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90", "-DA=B"} <= set(configure)
    assert list(compile_)[-2:] == ["--parallel", "16"]
    assert (site / "llama_cpp" / "llama_cpp.py").is_file()
    link = site / "llama_cpp" / "lib" / "libllama.so"
    assert link.is_symlink()
    assert link.read_text() == "code"


# the random model ---------------------------------------------------------------------------------


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
