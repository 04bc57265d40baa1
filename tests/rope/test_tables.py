"""Which table of architectures is in force, and what of an architecture that it does not have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufrope.errors import FileError, RequestError
from ggufrope.rope import architectures
from ggufrope.rope.architectures import VARIABLE, architecture, current_table, source, use_table
from ggufrope.rope.encode import express
from ggufrope.rope.lint import lint
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import Linear, Llama3, Yarn

Metadata = Callable[..., RopeMetadata]
SHIPPED = Path(architectures.__file__).with_name("architectures-0c1e570.json")
COMMIT = "1234567890abcdef1234567890abcdef12345678"


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of the user's tables, an empty one, and no table that is named."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    use_table(None)
    folder = tmp_path / "ggufrope/architectures"
    folder.mkdir(parents=True)
    yield folder
    os.environ.pop(VARIABLE, None)
    use_table(None)


def table_file(
    path: Path, change: Callable[[dict[str, Any]], object], commit: str = COMMIT
) -> Path:
    """Write the shipped table with a change, as that of another commit."""
    plain = json.loads(SHIPPED.read_text("utf-8"))
    plain["source"]["commit"] = commit
    change(plain)
    path.write_text(json.dumps(plain), "utf-8")
    return path


def install(folder: Path, versions: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a llama.cpp of which the library has these bytes."""
    folder.mkdir(exist_ok=True)
    (folder / "libggml-base.so").write_bytes(b"\x7fELF\0" + bytes(99) + versions + bytes(99))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
    use_table(None)


def test_the_installed_commit_chooses_the_table(
    own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "lib", b"\x000.25.3\x000c1e570-dirty\0", monkeypatch)
    assert source().commit.startswith("0c1e570")
    assert current_table().reason == "made from the installed llama.cpp, 0c1e570"
    table_file(own_folder / "1234567.json", lambda plain: plain["architectures"].pop("mamba"))
    install(tmp_path / "lib", b"\x000.25.3\x00123456789\0", monkeypatch)
    assert source().commit == COMMIT
    assert not architecture("mamba").known


def test_a_build_that_does_not_know_its_commit_is_told_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "lib", b"\x000.26.0\0unknown\0", monkeypatch)
    assert source().commit == "b11434"
    assert "same version" in current_table().reason


def test_a_build_may_name_itself_by_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "lib", b"\x000.26.0\0b11434\0", monkeypatch)
    assert current_table().reason == "made from the installed llama.cpp, b11434"


@pytest.mark.parametrize("versions", [b"", b"\x009.9.9\x00fffffff\0", b"\x009.9.9\0unknown\0"])
def test_another_build_gets_the_table_of_the_tested_version(
    versions: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "lib", versions, monkeypatch)
    assert source().commit.startswith("0c1e570")
    assert "tested with" in current_table().reason


def test_a_named_table_goes_before_all(own_folder: Path, tmp_path: Path) -> None:
    other = table_file(tmp_path / "other.json", lambda plain: plain["architectures"].pop("mamba"))
    use_table(other)
    assert current_table().path == other
    assert os.environ[VARIABLE] == str(other)  # processes that this one starts use it too
    use_table("b11434")
    assert architecture("clef").role == "classifier"
    use_table(None)
    assert VARIABLE not in os.environ
    assert not architecture("clef").known


def test_a_folder_stands_for_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    table_file(folder / "0c1e570.json", lambda plain: plain["source"].update(package="mine"))
    install(tmp_path / "lib", b"\x000.25.3\x000c1e570\0", monkeypatch)
    use_table(folder)
    assert source().package == "mine"


@pytest.mark.parametrize("commit", ["0c1e570", "b11434"])
def test_what_comes_along_passes_the_check_of_other_tables(commit: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(SHIPPED.with_name(f"architectures-{commit}.json").read_bytes())
    use_table(copy)
    checked = architectures.architectures()
    use_table(commit)
    assert checked == architectures.architectures()
    assert len(checked) > 150


def _of_llama(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda plain: plain["architectures"]["llama"].update(fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            _of_llama(ropes="norm"),
            r"the entry of 'llama': unknown key 'ropes'.*did you mean 'rope'",
        ),
        (_of_llama(rope="nox"), r"the entry of 'llama': rope must be one of .*found 'nox'"),
        (_of_llama(no_rope="last"), r"the entry of 'llama': step 0"),
        (_of_llama(recurrent="interval", step=-1), r"the entry of 'llama': step -1"),
        (_of_llama(global_rot_divisor=0), r"the entry of 'llama': global_rot_divisor 0"),
        (_of_llama(log_multiplier_unit=0), r"the entry of 'llama': log_multiplier_unit 0"),
        (
            _of_llama(tensors=["output.weight"]),
            r"the entry of 'llama': tensors\[0\] must be one of",
        ),
        (_of_llama(sliding={"pattern": "6"}), r"the entry of 'llama': sliding"),
        (lambda plain: plain["architectures"].update(llama=[]), r"the entry of 'llama'.*a table"),
        (lambda plain: plain.update(architectures={}), "no table of architectures"),
        (lambda plain: plain.pop("source"), "source: the value must be a table"),
        (lambda plain: plain["source"].pop("commit"), "source: commit is missing"),
    ],
)
def test_a_bad_table_is_refused_by_name_and_entry(
    change: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path
) -> None:
    bad = table_file(tmp_path / "bad.json", change)
    before = current_table()
    with pytest.raises(FileError, match=rf"bad\.json: {reason}"):
        use_table(bad)
    assert current_table().path == before.path


@pytest.mark.parametrize("content", [b"", b"[", b"\xff\xfe", b"[]", b"[" * 100_000, b"{}"])
def test_a_file_that_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"bad\.json"):
        use_table(path)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no table in this folder"):
        use_table(tmp_path)


def test_a_commit_without_a_table_is_refused_with_those_there_are() -> None:
    with pytest.raises(FileError, match=r"no table of that commit \(0c1e570, b11434\)"):
        use_table("fffffff")


# An architecture that the table does not have ------------------------------------------------


def test_it_is_read_by_the_rules_that_all_share(metadata: Metadata) -> None:
    fields = {"factor": 4.0, "scaling_type": "yarn", "original_context": 2048}
    known = effective(metadata("qwen2", **fields))
    unknown = effective(metadata("spline", **fields))
    assert unknown.groups == known.groups
    assert unknown.rope_type == "unknown"
    assert "probe" in (unknown.caveat or "")
    (finding,) = lint(metadata("spline"))
    assert finding.code == "unknown-architecture"
    assert finding.severity == "warning"


def test_the_warning_names_a_table_that_has_it(metadata: Metadata) -> None:
    (finding,) = (each for each in lint(metadata("clef")) if each.code == "unknown-architecture")
    assert "b11434" in finding.message


def test_keys_are_written_and_factor_tensors_are_not(metadata: Metadata) -> None:
    model = metadata("spline")
    for scaling in (Linear(factor=4.0), Yarn(factor=4.0, original_context=2048)):
        assert "spline.rope.scaling.factor" in express(scaling, model).keys
    scheme = Llama3(factor=8, low_freq_factor=1, high_freq_factor=4, original_context=2048)
    with pytest.raises(RequestError, match=r"not known whether llama\.cpp loads factor tensors"):
        express(scheme, model)


def test_factors_that_a_file_has_are_taken_to_act(metadata: Metadata) -> None:
    tensor = {"rope_freqs.weight": np.full(32, 2.0)}
    plain, slowed = (
        effective(metadata("spline", factors=factors)).groups[0] for factors in ({}, tensor)
    )
    pairs = zip(plain.inverse_frequencies, slowed.inverse_frequencies, strict=True)
    assert all(slow == pytest.approx(fast / 2) for fast, slow in pairs)


def test_it_does_not_say_that_keys_are_not_read(metadata: Metadata) -> None:
    model = metadata("spline", scaling_type="yarn", factor=4.0, yarn_beta_fast=16.0)
    assert not any(each.code == "dead-key" for each in lint(model))
    value = effective(model).values["yarn_beta_fast"]
    assert value.source == "ignored"
    assert "not known" in value.reason
