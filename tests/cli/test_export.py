"""`ggufrope export`: text to paste on stdout, what it leaves out on stderr."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from fixtures.make import build
from tests.cli.conftest import Call


def test_text_alone_goes_to_stdout(cli: Call, llama: Path) -> None:
    result = cli("export", llama, "--to", "llama-server")
    assert result.code == 0
    assert shlex.split(result.out) == ["llama-server", "-m", str(llama), "-c", "512"]
    assert result.err.startswith("no flags needed: the file says it all")


def test_a_scaling_that_is_not_in_the_file(cli: Call, llama: Path) -> None:
    before = llama.read_bytes()
    options = ("--scaling", "linear", "--target-ctx", "2k")
    result = cli("export", llama, "--to", "llama-server", *options)
    assert result.code == 0
    assert shlex.split(result.out)[3:] == [
        *("-c", "2048", "--rope-scaling", "linear", "--rope-freq-scale", "0.25"),
        *("--override-kv", "llama.context_length=int:2048"),
    ]
    assert llama.read_bytes() == before
    assert list(llama.parent.iterdir()) == [llama]


def test_a_config_is_requested_as_patch_takes_it(cli: Call, llama: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config.write_text(
        json.dumps({"max_position_embeddings": 2048, "rope_theta": 1e4, "rope_scaling": rope})
    )
    result = cli("export", llama, "--to", "llama-cpp-python", "--from-config", config)
    assert result.code == 0
    assert "rope_scaling_type=2, rope_freq_scale=0.25, yarn_orig_ctx=512" in result.out


def test_what_is_not_expressed_is_named(cli: Call, llama: Path) -> None:
    options = ("--scaling", "llama3", "--factor", "4")
    result = cli("export", llama, "--to", "ollama", *options)
    assert result.code == 0
    assert result.out == f"FROM {llama}\nPARAMETER num_ctx 2048\n"
    start = "not expressed: Llama3: a Modelfile has no RoPE parameters; write it into a copy: "
    assert result.err.startswith(f"{start}ggufrope patch {llama} -o ")
    answer = cli("export", llama, "--to", "ollama", *options, "--json").json
    assert answer.keys() == {"schema", "tool", "text", "inexpressible", "notes"}
    assert len(answer["inexpressible"]) == 1


def test_a_config_takes_what_no_file_can_say(cli: Call, tmp_path: Path) -> None:
    """qwen2 loads no factor tensors; its config has a rope_type for Llama 3's scheme."""
    model = build("qwen2", tmp_path / "qwen2.gguf", context=512)[0]
    options = ("--scaling", "llama3", "--factor", "4")
    refused = cli("export", model, "--to", "llama-server", *options)
    assert refused.code == 2
    assert "loads no factor tensors" in refused.err
    section = json.loads(cli("export", model, "--to", "huggingface", *options).out)
    assert section["max_position_embeddings"] == 2048
    assert section["rope_parameters"]["rope_type"] == "llama3"
    assert section["rope_parameters"]["original_max_position_embeddings"] == 512


def test_a_paste_of_the_remedy_works(cli: Call, llama: Path) -> None:
    result = cli("export", llama, "--to", "ollama", "--scaling", "llama3", "--factor", "4")
    command = shlex.split(result.err.partition("write it into a copy: ")[2])
    assert cli(*command[1:]).code == 0
    written = cli("export", command[command.index("-o") + 1], "--to", "ollama")
    assert "not expressed" not in written.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--to", "word"), "expected llama-server, "),
        (("--to", "vllm", "--target-ctx", "2k"), "missing --scaling"),
        (("--to", "vllm", "--scaling", "yarn"), "missing --target-ctx or --factor"),
    ],
)
def test_usage_errors(cli: Call, llama: Path, options: tuple[str, ...], reason: str) -> None:
    result = cli("export", llama, *options)
    assert result.code == 2
    assert reason in result.err
    assert result.out == ""
