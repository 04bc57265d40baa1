"""`ggufrope check`: one line per file, one exit code, and a config.json compared with each file."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fixtures.make import build
from tests.cli.conftest import Call

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}


def write_config(folder: Path, section: dict[str, Any] | None, **fields: Any) -> Path:
    """A config.json of the models that `build` makes: heads of 32 dimensions."""
    config = {
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "head_dim": 32,
        "rope_scaling": section,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config | fields))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good file, one with a warning, one with an error, and one that is damaged."""
    models = tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    build("qwen2", models / "good.gguf", context=512)
    build("qwen2", models / "sub" / "warn.gguf", keys={"rope.scaling.type": "yarn"})
    build("llama", models / "wrong.gguf", context=0)
    (models / "bad.gguf").write_bytes(b"GGUF nothing")
    (models / "readme.txt").write_text("not a model")
    return models


def test_a_folder_is_one_line_per_file(cli: Call, folder: Path) -> None:
    outcome = cli("check", folder)
    lines = outcome.out.splitlines()
    assert outcome.code == 1
    assert [Path(line.split()[1]).name for line in lines[:-1]] == [
        "bad.gguf",
        "good.gguf",
        "warn.gguf",
        "wrong.gguf",
    ]
    assert [line.split()[0] for line in lines[:-1]] == ["error", "ok", "warning", "error"]
    assert "unreadable: " in lines[0]
    assert lines[1].split()[2:] == ["qwen2", "512", "none"]
    assert "no-context-length: " in lines[3]
    assert lines[-1].startswith("4 files: 2 errors, ")


def test_json_has_every_finding(cli: Call, folder: Path) -> None:
    answer = cli("check", folder, "--json").json
    by_name = {Path(file["file"]).name: file for file in answer["files"]}
    assert answer["summary"]["files"] == 4
    assert answer["summary"]["error"] == 2
    assert by_name["bad.gguf"]["readable"] is False
    assert by_name["good.gguf"] == {
        "file": str(folder / "good.gguf"),
        "name": str(folder / "good.gguf"),
        "readable": True,
        "architecture": "qwen2",
        "context_length": 512,
        "scaling": "none",
        "worst": None,
        "findings": [],
        "config": None,
        "proof": None,
    }
    inspected = cli("inspect", folder / "sub" / "warn.gguf", "--json").json
    assert by_name["warn.gguf"]["findings"] == inspected["findings"]


def test_the_exit_code(cli: Call, folder: Path, tmp_path: Path) -> None:
    """0 fine, 1 an error in a file, 3 where all that is wrong is that a file cannot be read."""
    assert cli("check", folder / "good.gguf", folder / "sub" / "warn.gguf").code == 0
    assert cli("check", folder / "wrong.gguf").code == 1
    assert cli("check", folder / "good.gguf", folder / "bad.gguf").code == 3
    assert cli("check", tmp_path / "absent.gguf").code == 3
    assert cli("check", folder / "wrong.gguf", tmp_path / "absent.gguf").code == 1
    assert cli("check").code == 2


def test_inspect_fails_with_check(cli: Call, folder: Path) -> None:
    assert cli("inspect", folder / "wrong.gguf").code == 1
    assert cli("inspect", folder / "wrong.gguf", "--json").code == 1
    assert cli("inspect", folder / "sub" / "warn.gguf").code == 0


def test_what_llama_cpp_refuses_is_an_error(cli: Call, tmp_path: Path) -> None:
    path = build("qwen2", tmp_path / "m.gguf", keys={"block_count": 600})[0]
    for command in ("inspect", "check"):
        outcome = cli(command, path, "--json")
        assert outcome.code == 1
        findings = outcome.json.get("findings") or outcome.json["files"][0]["findings"]
        assert findings[0]["severity"] == "error"


def test_an_empty_folder_does_not_pass(cli: Call, tmp_path: Path) -> None:
    outcome = cli("check", tmp_path)
    assert (outcome.code, outcome.out) == (3, "")
    assert "no .gguf file" in outcome.err


def test_files_are_found_once(cli: Call, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "deep" / "er").mkdir(parents=True)
    real = build("qwen2", models / "deep" / "m.gguf")[0]
    (models / "a-link.gguf").symlink_to(real)
    (models / "loop").symlink_to(models)
    build("llama", models / "deep" / "er" / "split.gguf", shard_tensors=8)
    os.mkfifo(models / "pipe.gguf")
    (models / "UPPER.GGUF").write_bytes(real.read_bytes())
    answer = cli("check", models, models, real, "--json").json
    assert [Path(file["file"]).name for file in answer["files"]] == [
        "UPPER.GGUF",
        "split-00001-of-00003.gguf",
        "m.gguf",
    ]


def test_a_broken_link_and_a_lone_shard_are_told(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    shards = build("llama", tmp_path / "split.gguf", shard_tensors=8)
    shards[0].unlink()
    outcome = cli("check", tmp_path, "--json")
    assert outcome.code == 3
    names = [Path(file["file"]).name for file in outcome.json["files"]]
    assert names == ["gone.gguf", "split-00002-of-00003.gguf"]


def test_what_is_no_language_model_is_not_judged_as_one(cli: Call, tmp_path: Path) -> None:
    for kind in ("adapter", "mmproj"):
        path = build("llama", tmp_path / "m.gguf", context=0, keys={"general.type": kind})[0]
        outcome = cli("check", path, "--json")
        assert outcome.code == 0
        (file,) = outcome.json["files"]
        assert [each["code"] for each in file["findings"]] == ["no-model"]
        assert file["scaling"] is None


def test_an_unfinished_edit_is_told_and_not_touched(cli: Call, tmp_path: Path) -> None:
    path = build("qwen2", tmp_path / "m.gguf")[0]
    left = tmp_path / ".m.gguf.ggufrope-partial"
    left.write_bytes(b"half")
    outcome = cli("check", path, "--json")
    assert outcome.code == 1
    assert outcome.json["files"][0]["findings"][0]["code"] == "unfinished-edit"
    assert left.read_bytes() == b"half"


def test_a_hostile_name_is_one_line(cli: Call, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"rope.scaling.type": "\x1b[2Jline\nbreak"}
    build("qwen2", tmp_path / "x\n\x1b[31m.gguf", keys=keys)
    outcome = cli("check", tmp_path)
    assert outcome.code == 1
    assert "\x1b" not in outcome.out
    assert outcome.out.count("\n") == 2


# Against a config.json ----------------------------------------------------------------------------


def test_a_file_that_is_what_the_config_says(cli: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, YARN)
    keys: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 256,
    }
    path = build("qwen2", tmp_path / "m.gguf", context=1024, keys=keys)[0]
    outcome = cli("check", path, "--config", config, "--json")
    compared = outcome.json["files"][0]["config"]
    assert outcome.code == 0
    assert compared["agrees"]
    assert compared["command"] is None
    said = {row["key"]: row["agrees"] for row in compared["keys"]}
    assert said["qwen2.rope.scaling.factor"]
    assert said["qwen2.context_length"]
    assert all(said.values())
    assert "as the config says" in cli("check", path, "--config", config).out


@pytest.mark.parametrize(
    ("architecture", "section"),
    [
        ("qwen2", YARN),
        ("qwen2", {"type": "linear", "factor": 4.0}),
        ("qwen2", None),
        (
            "llama",
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        ),
        (
            "phi3",
            {
                "type": "longrope",
                "long_factor": np.linspace(1, 8, 16).tolist(),
                "short_factor": [1.0] * 16,
                "original_max_position_embeddings": 256,
            },
        ),
    ],
)
def test_the_command_mends_the_file(
    cli: Call, tmp_path: Path, architecture: str, section: dict[str, Any] | None
) -> None:
    config = write_config(tmp_path, section, rope_theta=50000.0)
    path = build(architecture, tmp_path / "a model.gguf")[0]
    outcome = cli("check", path, "--config", config, "--json")
    (file,) = outcome.json["files"]
    assert outcome.code == 1
    assert file["findings"][0]["code"] == "config-differs"
    rows = {row["key"]: row for row in file["config"]["keys"]}
    base = rows[f"{architecture}.rope.freq_base"]
    assert (base["file"], base["config"], base["agrees"]) == (10000, 50000, False)
    program, *words = shlex.split(file["config"]["command"])
    assert program == "ggufrope"
    assert cli(*words).code == 0
    mended = cli("check", words[words.index("-o") + 1], "--config", config, "--json")
    (after,) = mended.json["files"]
    assert mended.code == 0, after
    assert after["config"]["agrees"]
    assert [row for row in after["config"]["keys"] if not row["agrees"]] == []


def test_the_same_rotation_in_other_words_agrees(cli: Call, tmp_path: Path) -> None:
    """Without a type llama.cpp scales linearly; the config's word for it is another key."""
    config = write_config(tmp_path, {"type": "linear", "factor": 4.0})
    path = build("qwen2", tmp_path / "m.gguf", context=1024, keys={"rope.scale_linear": 4.0})[0]
    outcome = cli("check", path, "--config", config)
    assert outcome.code == 0
    assert "written otherwise, with the same effect" in outcome.out


def test_the_base_of_sliding_windows_is_compared_with_the_file(cli: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, None, rope_theta=1e6, rope_local_base_freq=10000.0)
    path = build("gemma3", tmp_path / "m.gguf", context=1024, base=1e6)[0]
    (file,) = cli("check", path, "--config", config, "--json").json["files"]
    row = next(r for r in file["config"]["keys"] if r["key"] == "gemma3.rope.freq_base_swa")
    assert (row["file"], row["config"], row["agrees"]) == (10000, 10000.0, True)
    assert file["config"]["command"] is None


def test_another_base_of_sliding_windows_is_mended(cli: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, None, rope_theta=1e6, rope_local_base_freq=25000.0)
    path = build("gemma3", tmp_path / "m.gguf", context=1024, base=1e6)[0]
    outcome = cli("check", path, "--config", config, "--json")
    (file,) = outcome.json["files"]
    assert outcome.code == 1
    row = next(r for r in file["config"]["keys"] if r["key"] == "gemma3.rope.freq_base_swa")
    assert (row["file"], row["config"], row["agrees"]) == (None, 25000.0, False)
    words = shlex.split(file["config"]["command"])[1:]
    assert cli(*words).code == 0
    assert cli("check", words[words.index("-o") + 1], "--config", config).code == 0


def header(path: Path, architecture: str, **keys: int | float | str | bool) -> Path:
    """A file of 4 layers of 2 heads without weights."""
    writer = gguf.GGUFWriter(path, architecture)
    add: dict[type, Any] = {int: writer.add_uint32, float: writer.add_float32}
    add |= {str: writer.add_string, bool: writer.add_bool}
    sizes = {"block_count": 4, "context_length": 1024, "embedding_length": 64}
    for key, value in {**sizes, "attention.head_count": 2, **keys}.items():
        add[type(value)](f"{architecture}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_factors_that_the_config_does_not_have_differ(cli: Call, tmp_path: Path) -> None:
    steps = np.linspace(1, 8, 16, dtype=np.float32)
    path = build("llama", tmp_path / "m.gguf", context=1024, factors={"rope_freqs.weight": steps})
    config = write_config(tmp_path, None)
    outcome = cli("check", path[0], "--config", config, "--json")
    (file,) = outcome.json["files"]
    assert outcome.code == 1
    assert "rope_freqs.weight" in file["findings"][0]["message"]
    words = shlex.split(file["config"]["command"])[1:]
    assert cli(*words).code == 0
    assert cli("check", words[words.index("-o") + 1], "--config", config).code == 0


@pytest.mark.parametrize(("turning", "code"), [(16, 0), (32, 1)])
def test_rotary_dimensions_of_sliding_windows(
    cli: Call, tmp_path: Path, turning: int, code: int
) -> None:
    keys: dict[str, Any] = {"rope.dimension_count_swa": turning, "attention.sliding_window": 64}
    keys |= {"rope.dimension_count": 32, "rope.freq_base_swa": 10000.0}
    path = header(tmp_path / "m.gguf", "laguna", **keys)
    section = {
        "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    }
    config = write_config(tmp_path, None, rope_parameters=section)
    outcome = cli("check", path, "--config", config, "--json")
    assert outcome.code == code
    (file,) = outcome.json["files"]
    row = next(r for r in file["config"]["keys"] if r["key"].endswith("dimension_count_swa"))
    assert (row["file"], row["config"], row["agrees"]) == (turning, 16, code == 0)


@pytest.mark.parametrize(
    ("kind", "turns", "code"),
    [("nope", False, 0), ("nope", True, 1), ("rope", True, 0), ("rope", False, 1)],
)
def test_whether_layers_rotate(
    cli: Call, tmp_path: Path, kind: str, *, turns: bool, code: int
) -> None:
    path = header(tmp_path / "m.gguf", "granitehybrid", **{"rope.scaling.finetuned": turns})
    config = write_config(tmp_path, None, position_embedding_type=kind)
    outcome = cli("check", path, "--config", config)
    assert outcome.code == code
    assert ("its layers" in outcome.out) == (code == 1)


def test_windows_that_llama_cpp_scales_too_are_named(cli: Call, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"attention.sliding_window": 64, "rope.scaling.type": "linear"}
    path = header(tmp_path / "m.gguf", "gpt-oss", **keys, **{"rope.scaling.factor": 4.0})
    section = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = write_config(tmp_path, None, rope_parameters=section)
    outcome = cli("check", path, "--config", config, "--json")
    (note,) = outcome.json["files"][0]["config"]["notes"]
    assert "llama.cpp has no way to leave them out" in note


def test_a_size_that_no_key_says_is_not_named_by_another(cli: Call, tmp_path: Path) -> None:
    path = header(tmp_path / "m.gguf", "command-r")
    compared = cli("check", path, "--config", write_config(tmp_path, None), "--json").json
    rows = {row["key"]: row["file"] for row in compared["files"][0]["config"]["keys"]}
    assert "command-r.embedding_length" not in rows
    assert rows["command-r.rope.dimension_count"] is None


@pytest.mark.parametrize("fields", [{"max_position_embeddings": 1 << 40}, {"rope_theta": 1e39}])
def test_what_no_file_can_hold_is_refused_and_not_suggested(
    cli: Call, tmp_path: Path, fields: dict[str, Any]
) -> None:
    path = build("qwen2", tmp_path / "m.gguf")[0]
    outcome = cli("check", path, "--config", write_config(tmp_path, None, **fields), "--json")
    (file,) = outcome.json["files"]
    assert file["findings"][0]["code"] == "config-refused"
    assert "does not fit" in file["findings"][0]["message"]
    assert file["config"]["command"] is None


def test_a_config_with_a_byte_order_mark(cli: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, None)
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    path = build("qwen2", tmp_path / "m.gguf", context=1024)[0]
    assert cli("check", path, "--config", config).code == 0


def test_what_llama_cpp_assumes_anyway_does_not_differ(cli: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, None, rope_theta=50000.0)
    path = build(
        "qwen2", tmp_path / "m.gguf", context=1024, keys={"rope.scaling.attn_factor": 1.0}
    )[0]
    (file,) = cli("check", path, "--config", config, "--json").json["files"]
    assert not file["config"]["agrees"]
    differing = [row["key"] for row in file["config"]["keys"] if not row["agrees"]]
    assert differing == ["qwen2.rope.freq_base"]


def test_a_model_of_a_store_keeps_its_name(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that mends it reads the store and writes into the current folder."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--owner--repo" / "snapshots" / "aaa"
    snapshot.mkdir(parents=True)
    build("qwen2", snapshot / "m.gguf")
    outcome = cli(
        "check", "hf:owner/repo/m.gguf", "--config", write_config(tmp_path, YARN), "--json"
    )
    (file,) = outcome.json["files"]
    assert (file["file"], file["name"]) == (str(snapshot / "m.gguf"), "hf:owner/repo/m.gguf")
    words = shlex.split(file["config"]["command"])
    assert words[2:5] == ["hf:owner/repo/m.gguf", "-o", "m-from-config.gguf"]
    missing = cli("check", "hf:owner/repo/n.gguf", "hf:owner/repo/m.gguf")
    assert missing.code == 3
    assert "HF_HUB_OFFLINE forbids to ask the Hub" in missing.out
    assert "2 files: 1 error" in missing.out
    assert cli("check", "ollama:none/of/those/names").code == 2


def test_a_config_of_another_model_is_told_per_file(cli: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, YARN, head_dim=128)
    path = build("qwen2", tmp_path / "m.gguf")[0]
    outcome = cli("check", path, "--config", config, "--json")
    assert outcome.code == 1
    (file,) = outcome.json["files"]
    assert file["findings"][0]["code"] == "config-refused"
    assert "128" in file["findings"][0]["message"]
    assert "32" in file["findings"][0]["message"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_config_that_is_none_is_refused_once(cli: Call, folder: Path, content: str) -> None:
    config = folder / "config.json"
    config.write_text(content)
    outcome = cli("check", folder, "--config", config)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1


def test_check_needs_neither_llama_cpp_nor_numpy(tmp_path: Path) -> None:
    build("qwen2", tmp_path / "m.gguf")
    config = write_config(tmp_path, YARN)
    script = (
        "import sys\n"
        "sys.modules['numpy'] = sys.modules['llama_cpp'] = None\n"
        "import ggufrope\n"
        "report = ggufrope.check(sys.argv[1], config=sys.argv[2])\n"
        "ggufrope.sarif(report)\n"
        "print(len(report.files))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, config], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_a_hundred_files_take_seconds(cli: Call, tmp_path: Path) -> None:
    first = build("qwen2", tmp_path / "0.gguf")[0]
    for number in range(1, 100):
        shutil.copy(first, tmp_path / f"{number}.gguf")
    outcome = cli("check", tmp_path)
    assert outcome.out.endswith("100 files: 0 errors, 0 warnings\n")


def test_what_is_read_is_not_written_over(cli: Call, folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, None)
    broken, text = folder / "broken.gguf", tmp_path / "r"
    broken.write_bytes(b"nothing")
    before = {path: path.read_bytes() for path in (config, broken, folder / "good.gguf")}
    for name in before:
        outcome = cli("check", folder, "--config", config, "--sarif", text, "--md", name)
        assert outcome.code == 2
        assert f"--md {name}: a file that is read too" in outcome.err
    assert {path: path.read_bytes() for path in before} == before
    outcome = cli("check", folder, "--md", text, "--junit", text)
    assert (outcome.code, text.exists()) == (2, False)
    assert f"--junit {text}: the file of --md too" in outcome.err
