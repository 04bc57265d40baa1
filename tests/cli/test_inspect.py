"""`ggufrope inspect` on good, damaged and hostile files."""

from __future__ import annotations

from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from fixtures.make import build
from ggufrope._format import byte_size
from ggufrope.container.filesystem import lock
from ggufrope.container.reader import read_header
from tests.cli.conftest import Call
from tests.container.writer import STRING, Model, Tensor


def test_json_has_the_keys_of_the_contract(cli: Call, llama: Path) -> None:
    answer = cli("inspect", llama, "--json").json
    assert answer["architecture"] == "llama"
    assert answer["declared"]["llama.context_length"] == 512
    (group,) = answer["effective"]["groups"]
    assert group["layers"] == [0, 1]
    assert len(group["inverse_frequencies"]) == 16
    assert group["inverse_frequencies"][0] == 1
    assert group["magnitude"] == 1
    values = answer["effective"]["values"]
    assert set(values["freq_base"]) == {"value", "source", "reason"}
    assert values["freq_base"]["source"] == "file"
    assert values["freq_scale"]["source"] == "default"
    assert answer["findings"] == []


def test_a_context_to_predict_for(cli: Call, llama: Path) -> None:
    answer = cli("inspect", llama, "--ctx", "4096", "--json").json
    assert answer["effective"]["context_tokens"] == 4096


def test_findings_have_a_code_and_a_remedy(cli: Call, tmp_path: Path) -> None:
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 2.0,
        "rope.scaling.yarn_beta_fast": 8.0,
    }
    path = build("qwen2", tmp_path / "m.gguf", keys=keys)[0]
    findings = cli("inspect", path, "--json").json["findings"]
    dead_key = next(f for f in findings if f["key"] == "qwen2.rope.scaling.yarn_beta_fast")
    assert set(dead_key) == {"code", "severity", "key", "message"}
    assert "--yarn-beta-fast" in dead_key["message"]


def test_findings_about_the_layout_are_in_the_same_list(
    cli: Call, llama: Path, tmp_path: Path
) -> None:
    """llama.cpp refuses a file whose keys repeat or have no name; bytes at the end are harmless."""
    metadata = [
        ("general.architecture", STRING, "llama"),
        ("llama.context_length", 4, 512),
        ("llama.block_count", 4, 1),
        ("llama.embedding_length", 4, 64),
        ("llama.attention.head_count", 4, 2),
        ("llama.rope.scaling.type", STRING, "yarn"),
        ("llama.context_length", 4, 1024),
        ("", 4, 1),
    ]
    tensor = Tensor("token_embd.weight", (8,), bytes(32))
    model = Model(metadata=metadata, tensors=[tensor], trailing=b"more")
    path = tmp_path / "odd.gguf"
    path.write_bytes(model.encoded())
    findings = cli("inspect", path, "--json").json["findings"]
    assert all(set(found) == {"code", "severity", "key", "message"} for found in findings)
    severity = {found["code"]: found["severity"] for found in findings}
    assert severity["duplicate-key"] == severity["empty-key"] == "error"
    assert severity["trailing-bytes"] == "info"
    assert severity["yarn-without-factor"] == "warning"
    order = ["error", "warning", "info"]
    assert [found["severity"] for found in findings] == sorted(severity.values(), key=order.index)
    text = cli("inspect", path).out
    assert 0 < text.index("duplicate-key") < text.index("declared key")
    assert "llama.context_length" in next(
        f["key"] for f in findings if f["code"] == "duplicate-key"
    )


def test_a_file_that_no_common_machine_loads_is_an_error(cli: Call, tmp_path: Path) -> None:
    path = build("llama", tmp_path / "m.gguf", big_endian=True)[0]
    (found,) = cli("inspect", path, "--json").json["findings"]
    assert (found["code"], found["severity"]) == ("big-endian", "error")
    path = build("llama", tmp_path / "m.gguf", alignment=8, keys={"general.note": "x"})[0]
    start = read_header(path).data_offset
    found = cli("inspect", path, "--json").json["findings"]
    assert [f["code"] for f in found] == (["misaligned-data"] if start % 32 else [])
    assert start % 32


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_factors_of_another_type_are_an_error_and_shown(
    cli: Call, tmp_path: Path, kind: type[np.floating]
) -> None:
    factors = {"rope_freqs.weight": np.linspace(1, 8, 16)}
    path = build("llama", tmp_path / "m.gguf", factors=factors, factor_type=kind)[0]
    answer = cli("inspect", path, "--json").json
    assert [f["code"] for f in answer["findings"]] == ["factor-type"]
    assert "F32" in answer["findings"][0]["message"]
    assert "F32" in answer["refusal"]
    assert "2.4" in cli("factors", path).out


def test_a_split_model_is_counted_as_a_whole(cli: Call, tmp_path: Path) -> None:
    whole = build("llama", tmp_path / "whole.gguf")[0]
    parts = build("llama", tmp_path / "m.gguf", shard_tensors=8)
    tensors = len(read_header(whole).tensors)
    assert f"{tensors} tensors · " in cli("inspect", whole).out
    shown = cli("inspect", parts[0]).out
    assert f"{tensors} tensors in {len(parts)} files · " in shown
    assert byte_size(sum(part.stat().st_size for part in parts)) in shown


def test_a_context_that_the_file_does_not_cover(cli: Call, llama: Path) -> None:
    assert cli("inspect", llama, "--ctx", "512", "--json").json["findings"] == []
    (found,) = cli("inspect", llama, "--ctx", "2048", "--json").json["findings"]
    assert (found["code"], found["severity"]) == ("beyond-trained-context", "warning")
    assert "4 times the 512" in found["message"]


def test_a_key_that_nothing_reads_is_declared_and_found(cli: Call, tmp_path: Path) -> None:
    keys = {"rope.global.freq_base": 1e6}
    path = build("gemma3", tmp_path / "m.gguf", keys=keys)[0]
    answer = cli("inspect", path, "--json").json
    assert answer["declared"]["gemma3.rope.global.freq_base"] == 1e6
    assert [f["code"] for f in answer["findings"]] == ["unknown-key"]


def test_an_attention_scale_is_shown_beside_the_attention_factor(cli: Call, tmp_path: Path) -> None:
    scaling = {
        "type": "yarn",
        "factor": 16.0,
        "original_context_length": 16,
        "yarn_log_multiplier": 0.1,
    }
    keys = {f"rope.scaling.{name}": value for name, value in scaling.items()}
    path = build("deepseek2", tmp_path / "m.gguf", keys=keys)[0]
    answer = cli("inspect", path, "--json").json
    (group,) = answer["effective"]["groups"]
    assert group["magnitude"] == pytest.approx(1)
    assert group["attention_scale"] == pytest.approx(1.63139, rel=1e-5)
    assert answer["effective"]["values"]["attention_scale"]["source"] == "file"
    shown = cli("inspect", path).out
    assert "att. scale" in shown
    assert "1.63139" in shown
    plain = build("llama", tmp_path / "plain.gguf")[0]
    assert "att. scale" not in cli("inspect", plain).out


def test_the_terminal_fits_80_columns(cli: Call, llama: Path) -> None:
    shown = cli("inspect", llama)
    assert shown.code == 0
    assert "llama.context_length" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_a_file_cannot_move_the_cursor(cli: Call, tmp_path: Path) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07[bold]x[/bold]\u202e"
    path = build("llama", tmp_path / "m.gguf", context=512, keys={"rope.scaling.type": hostile})[0]
    shown = cli("inspect", path)
    assert "\x1b" not in shown.out
    assert "\u202e" not in shown.out
    assert r"\x1b[2J" in shown.out.replace("\n", "").replace(" ", "")
    assert "[bold]x[/bold]" in shown.out.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize(
    "content", [b"", b"GGU", b"not a gguf file at all", b"GGUF\x63\x00\x00\x00"]
)
def test_no_gguf(cli: Call, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    outcome = cli("inspect", path)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("ggufrope: ")
    assert outcome.err.count("\n") == 1
    assert "x.gguf" in outcome.err


def test_every_truncation_is_one_line(cli: Call, llama: Path, tmp_path: Path) -> None:
    whole = llama.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(0, 2000, 97):
        cut.write_bytes(whole[:length])
        outcome = cli("inspect", cut)
        assert outcome.code == 3, length
        assert outcome.err.count("\n") == 1
        assert "Traceback" not in outcome.err


def test_a_directory_and_nothing(cli: Call, tmp_path: Path) -> None:
    assert cli("inspect", tmp_path).code == 3
    assert cli("inspect", tmp_path / "absent.gguf").code == 3


def test_usage(cli: Call) -> None:
    assert cli("inspect").code == 2
    assert cli("inspect", "x", "--ctx", "many").code == 2
    assert cli("no-such-command").code == 2


def test_names_of_other_stores_are_looked_up_on_disk(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    outcome = cli("inspect", "ollama:absent")
    assert outcome.code == 3
    assert "ollama list" in outcome.err


def test_the_table_that_is_used_is_named(cli: Call, llama: Path) -> None:
    used = cli("inspect", llama, "--architectures", "b11434", "--json").json["table"]
    assert used["source"]["commit"] == "b11434"
    assert used["has_architecture"] is True
    doctor = cli("doctor", "--json").json
    assert doctor["table"]["source"]["commit"] == doctor["table_commit"] == "b11434"
    refused = cli("inspect", llama, "--architectures", "nowhere")
    assert refused.code == 3
    assert "nowhere: no such file" in refused.err


@pytest.mark.llama
def test_an_architecture_in_no_table_is_patched_with_a_warning(cli: Call, tmp_path: Path) -> None:
    nano = Path(__file__).resolve().parents[2] / "fixtures/nano.gguf"
    model = tmp_path / "spiral.gguf"
    content = nano.read_bytes().replace(b"llama.", b"llxma.")
    model.write_bytes(content.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llxma"))
    for words in (
        ["inspect"],
        ["check"],
        ["advise", "--target-ctx", "1k"],
        ["export", "--to", "vllm"],
    ):
        assert cli(*words, model).code == 0
    output = tmp_path / "long.gguf"
    scaling = ("--scaling", "linear", "--target-ctx", "1k")
    patched = cli("patch", model, "-o", output, *scaling, "--json")
    (finding,) = patched.json["findings"]
    assert finding["code"] == "unknown-architecture"
    assert cli("inspect", output, "--json").json["declared"]["llxma.rope.scaling.factor"] == 4
    baked = cli("patch", model, "-o", tmp_path / "baked.gguf", *scaling, "--bake")
    assert baked.code == 2
    assert "not known whether llama.cpp loads factor tensors" in baked.err
    measured = cli("probe", output)
    assert measured.code == 5
    assert "unknown model architecture: 'llxma'" in measured.err


def test_a_reader_waits_for_an_edit(cli: Call, llama: Path) -> None:
    """The editor ends without a result: its journal is repaired when it lets go."""
    journal = llama.with_name(f".{llama.name}.ggufrope-journal")
    assert cli("patch", llama, "--in-place", "--scaling", "none", "--reserve", "4KiB").code == 0
    llama.with_name(f".{llama.name}.ggufrope-undo-000001").rename(journal)
    with llama.open("rb") as held:
        lock(held, llama)
        Timer(0.3, held.close).start()
        outcome = cli("inspect", llama)
    assert outcome.code == 0
    assert "committed it" in outcome.err
