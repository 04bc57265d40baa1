"""Proof by others: what the gguf package and llama.cpp find in a model, and what they must find."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from fixtures.make import build
from ggufrope.container.reader import read_header
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import Edits
from ggufrope.container.writer import plan_rewrite
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.patching.request import ScalingRequest
from ggufrope.proof import prove
from tests.container.edits import FACTORS, text, u32
from tests.container.writer import Model, Tensor, small_model

if TYPE_CHECKING:
    from pathlib import Path

YARN = ScalingRequest(scaling="yarn", factor=2.0)
BAKED = ScalingRequest(scaling="ntk-by-parts", factor=2.0, bake=True)


@pytest.mark.llama
def test_who_read_the_model_is_named_with_its_version(nano: Path) -> None:
    proof = prove(nano)
    assert proof.passed
    reader, runtime = proof.witnesses
    assert (reader.name, reader.version) == ("gguf", version("gguf"))
    assert runtime.name == "llama.cpp"
    assert "(" in runtime.version


@pytest.mark.llama
@pytest.mark.parametrize("request_", [YARN, BAKED], ids=["keys", "tensors"])
@pytest.mark.parametrize("place", ["in place", "copy", "reserved"])
def test_a_patch_is_read_as_planned(
    nano_copy: Path, tmp_path: Path, request_: ScalingRequest, place: str
) -> None:
    output = tmp_path / "out.gguf" if place == "copy" else None
    reserve = 4096 if place == "reserved" else None
    plan = plan_patch(nano_copy, request_, output=output, reserve=reserve)
    assert prove(apply(plan).path, plan.stores).findings == ()


@pytest.mark.llama
def test_a_split_model_is_read_in_all_its_files(tmp_path: Path) -> None:
    first, second, *_ = build("llama", tmp_path / "m.gguf", shard_tensors=8)
    plan = plan_patch(first, BAKED)
    assert prove(apply(plan).path, plan.stores).findings == ()
    rewrite = plan_rewrite(read_header(second), Edits(set={"x": text("\udcff")}))
    execute(plan_store(second, rewrite))
    (finding,) = prove(first).findings
    assert finding.code == "gguf-reads-otherwise"
    assert second.name in finding.message


@pytest.mark.llama
def test_a_file_that_is_not_what_was_planned(nano_copy: Path, tmp_path: Path) -> None:
    """The plan says what must be found: new keys, kept keys, and tensors with their shapes."""
    plan = plan_patch(nano_copy, BAKED, output=tmp_path / "out.gguf")
    good = shutil.copy(apply(plan).path, tmp_path / "good.gguf")
    header = read_header(good)
    present = {tensor.name for tensor in plan.model.header.tensors}
    (factors,) = {tensor.name for tensor in header.tensors} - present
    for edits, key in (
        (Edits(set={"llama.context_length": u32(999)}), "llama.context_length"),
        (Edits(set={"llama.block_count": u32(3)}), "llama.block_count"),
        (Edits(remove_tensors=frozenset({factors})), factors),
        (Edits(put_tensors={"token_embd.weight": FACTORS}), "token_embd.weight"),
        (Edits(set={"general.added": text("x")}), ""),
    ):
        rewrite = plan_rewrite(header, edits)
        execute(plan_store(good, rewrite, output=plan.output, force=("exists",)))
        found = prove(plan.output, plan.stores).findings
        assert key in [finding.key for finding in found if "planned" in finding.message]


@pytest.mark.llama
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            Model(metadata=[("general.architecture", 8, "llama"), ("general.name", 8, "\udcff")]),
            "utf-8",
        ),
        (Model(metadata=[("general.architecture", 8, "llama")] * 2), "Duplicate"),
        (small_model(tensors=[Tensor("a", (32,), bytes(128))] * 2), "duplicated tensor"),
        (small_model(tensors=[Tensor("a", (32,), bytes(128), type=4)]), "is not a valid"),
        (
            Model(
                metadata=[
                    ("general.architecture", 8, "llama"),
                    ("x", 9, (9, [(4, [1, 2]), (4, [3])])),
                ]
            ),
            "",
        ),
    ],
    ids=["not UTF-8", "key twice", "tensor twice", "unknown type", "nested"],
)
def test_what_the_gguf_package_reads_otherwise(tmp_path: Path, model: Model, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model.encoded())
    found = [f for f in prove(path).findings if f.code == "gguf-reads-otherwise"]
    assert says in " ".join(finding.message for finding in found)
    assert bool(found) is bool(says)


@pytest.mark.llama
def test_a_model_that_llama_cpp_refuses(nano_copy: Path) -> None:
    header = read_header(nano_copy)
    edits = Edits(remove_tensors=frozenset({"output_norm.weight"}))
    execute(plan_store(nano_copy, plan_rewrite(header, edits)))
    (finding,) = prove(nano_copy).findings
    assert finding.code == "llamacpp-refuses"
    assert "output_norm.weight" in finding.message


@pytest.mark.llama
def test_what_holds_no_language_model_is_read_and_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(
        Model(
            metadata=[("general.architecture", 8, "llama"), ("general.type", 8, "adapter")]
        ).encoded()
    )
    proof = prove(path)
    assert proof.passed
    assert [one.name for one in proof.witnesses] == ["gguf"]


@pytest.mark.parametrize(
    ("absent", "command"), [("gguf", "ggufrope[prove]"), ("llama_cpp", "ggufrope[llama]")]
)
def test_a_missing_part_is_one_line_and_nothing_is_written(
    nano_copy: Path, absent: str, command: str
) -> None:
    before = nano_copy.read_bytes()
    script = (
        f"import sys; sys.modules[{absent!r}] = None\nfrom ggufrope_cli.app import main; main()"
    )
    for words in (
        ["patch", nano_copy, "--in-place", "--scaling", "yarn", "--factor", "2"],
        ["undo", nano_copy],
        ["verify", nano_copy, nano_copy],
        ["check", nano_copy.parent],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, words), "--prove"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 4, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert f'pip install "{command}"' in done.stderr
    assert nano_copy.read_bytes() == before
