from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import typer.main
from ggufrope_cli.app import build as build_app
from ggufrope_cli.options_scaling import ScalingOptions

from fixtures.make import build
from ggufrope.patching.command import FLAGS, scaling_options
from ggufrope.patching.request import ScalingRequest
from tests.cli.conftest import Call

YARN = ("--scaling", "yarn", "--target-ctx", "2048")


def test_json_has_the_keys_of_the_contract(cli: Call, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    answer = cli("patch", llama, "-o", out, *YARN, "--hash-weights", "--json").json
    assert answer["written"] is True
    edits = {edit["key"]: (edit["old"], edit["new"]) for edit in answer["edits"]}
    assert edits["llama.context_length"] == (512, 2048)
    assert answer["strategy"] in ("clone", "stream")
    assert answer["bytes_written"] > 0
    assert len(answer["weights_sha256"]) == 64


def test_a_dry_run_writes_nothing(cli: Call, llama: Path, tmp_path: Path) -> None:
    before = llama.read_bytes()
    out = tmp_path / "out.gguf"
    answer = cli("patch", llama, "-o", out, *YARN, "--dry-run", "--json").json
    assert answer["written"] is False
    assert answer["edits"]
    assert sorted(tmp_path.iterdir()) == [llama]
    shown = cli("patch", llama, "--in-place", *YARN, "--dry-run")
    assert shown.code == 0
    assert "Nothing written." in shown.out
    assert "cannot overwrite: the header needs" in shown.out
    assert llama.read_bytes() == before


def test_in_place_then_undo(cli: Call, llama: Path) -> None:
    before = llama.read_bytes()
    patched = cli("patch", llama, "--in-place", *YARN)
    assert patched.code == 0
    assert "llama.gguf in place (strategy: grow) and verified it." in patched.out
    assert "cannot overwrite" not in patched.out
    assert gguf.GGUFReader(llama).fields["llama.rope.scaling.type"].contents() == "yarn"
    undone = cli("undo", llama)
    assert undone.code == 0
    assert "to its state before the last in-place edit." in undone.out
    assert llama.read_bytes() == before
    again = cli("undo", llama)
    assert again.code == 2
    assert "no edit" in again.err


def test_a_parameter_without_effect_is_warned_of(cli: Call, llama: Path, tmp_path: Path) -> None:
    shown = cli("patch", llama, "-o", tmp_path / "o.gguf", *YARN, "--beta-fast", "8")
    text = " ".join(shown.out.split())
    assert "warning: yarn_beta_fast 8 has no effect: llama.cpp does not read" in text
    assert "To apply the rest at run time, add: --yarn-beta-fast 8" in text
    assert "--yarn-beta-fast 8" in shown.out


def test_factors_from_a_file_and_back(cli: Call, llama: Path, tmp_path: Path) -> None:
    array = [1.0 + i / 8 for i in range(16)]
    factors = tmp_path / "f.json"
    factors.write_text(json.dumps({"long_factor": array}))
    out = tmp_path / "o.gguf"
    scaling = ("--scaling", "longrope", "--target-ctx", "2048", "--long-factors", factors)
    assert cli("patch", llama, "-o", out, *scaling).code == 0
    answer = cli("factors", out, "--json").json["tensors"]
    assert answer["rope_factors_long.weight"] == array
    assert answer["rope_factors_short.weight"] == [1.0] * 16
    for name in ("e.json", "e.csv", "e.npy"):
        assert cli("factors", out, "--export", tmp_path / name).code == 0
        assert (tmp_path / name).stat().st_size > 0
    assert cli("factors", out, "--export", tmp_path / "e.json").code == 3


def test_a_config_json(cli: Call, llama: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "head_dim": 32,
                "max_position_embeddings": 2048,
                "rope_theta": 10000.0,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 512,
                },
            }
        )
    )
    answer = cli("patch", llama, "-o", tmp_path / "o", "--from-config", config, "--json").json
    edits = {edit["key"]: edit["new"] for edit in answer["edits"]}
    assert edits["llama.rope.scaling.type"] == "yarn"
    assert edits["llama.context_length"] == 2048


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "2 frequency factors for 16"),
        ('{"long_factor": []}', "empty"),
        ('{"long_factor": [1.0, 2.0]}', "2 "),
        ('{"long_factor": [NaN]}', "nan"),
        ('{"long_factor": [0, 1]}', "0"),
        ('{"long_factor": [-1.5, 1]}', "-1.5"),
        ('{"long_factor": "all"}', "expected"),
    ],
)
def test_bad_factor_files(
    cli: Call, llama: Path, tmp_path: Path, content: str, message: str
) -> None:
    factors = tmp_path / "f.json"
    factors.write_text(content)
    scaling = ("--scaling", "longrope", "--target-ctx", "2048", "--long-factors", factors)
    outcome = cli("patch", llama, "-o", tmp_path / "o.gguf", *scaling)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scaling", "yarn", "--factor", "0"),
        ("--scaling", "yarn", "--factor", "-1"),
        ("--scaling", "yarn", "--factor", "nan"),
        ("--scaling", "yarn", "--factor", "1e9"),
        ("--scaling", "yarn", "--target-ctx", "256"),
        ("--scaling", "yarn", "--target-ctx", "0"),
        ("--scaling", "yarn", "--target-ctx", "2048", "--force", "everything"),
        ("--scaling", "cubic", "--factor", "2"),
        ("--scaling", "none", "--factor", "2"),
        ("--scaling", "yarn"),
        (),
    ],
)
def test_bad_requests(cli: Call, llama: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    before = llama.read_bytes()
    outcome = cli("patch", llama, "-o", tmp_path / "o.gguf", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [llama]
    assert llama.read_bytes() == before


def test_the_output_is_named_exactly_once(cli: Call, llama: Path, tmp_path: Path) -> None:
    assert cli("patch", llama, *YARN).code == 2
    assert cli("patch", llama, "-o", tmp_path / "o", "--in-place", *YARN).code == 2
    assert cli("patch", llama, "-o", llama, *YARN).code == 2
    assert cli("patch", llama, "--in-place", *YARN, "--strategy", "teleport").code == 2


def test_a_link_is_guarded_and_force_names_the_guard(
    cli: Call, llama: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(llama)
    outcome = cli("patch", link, "--in-place", *YARN)
    assert outcome.code == 3
    assert "symlink" in outcome.err
    assert cli("patch", link, "--in-place", *YARN, "--force", "symlink").code == 0


def test_no_room_leaves_nothing_behind(cli: Call, tmp_path: Path, small_disk: Path) -> None:
    model = build("llama", tmp_path / "m.gguf", context=512, layers=8)[0]
    outcome = cli("patch", model, "-o", small_disk / "o.gguf", *YARN)
    assert outcome.code == 3
    assert "free" in outcome.err
    assert list(small_disk.glob("o.gguf*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scaling", "linear", "--factor", "2", "--beta-fast", "8"), "--beta-fast does not"),
        (("--scaling", "yarn"), "missing --target-ctx or --factor"),
        (("--target-ctx", "1024"), "missing --scaling; choose one of: none, linear"),
        (("--scaling", "cubic", "--factor", "2"), "--scaling cubic: expected none, "),
        (("--scaling", "factors", "--factor", "2"), "--scaling factors needs --long-factors"),
        (("--scaling", "none", "--freq-base", "0.5"), "--freq-base 0.5 must be"),
        (("--scaling", "factors", "--long-factors", "[1, x]"), "expected a file, or numbers"),
    ],
)
def test_messages_name_options(
    cli: Call, llama: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = cli("patch", llama, "-o", tmp_path / "o.gguf", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "`" not in outcome.err


@pytest.mark.parametrize(
    "request_",
    [
        ScalingRequest(scaling="yarn", target_context=2048, original_context=512, factor=4.0),
        ScalingRequest(scaling="yarn", factor=1 / 3 + 2, beta_fast=24.5, beta_slow=0.1),
        ScalingRequest(scaling="yarn", factor=2.0, ext_factor=0.0, attn_factor=1.0693147180559945),
        ScalingRequest(scaling="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
        ScalingRequest(scaling="none", freq_base=1234567.875),
        ScalingRequest(scaling="factors", factor=2.0, long_factors=(1.0, 1.1, 2.5)),
        ScalingRequest(scaling="longrope", long_factors="a b.json", short_factors="file"),
        ScalingRequest(scaling="file", from_config="-c.json"),
        ScalingRequest(scaling="linear", factor=2.0, bake=True, replace_scaling=True),
        ScalingRequest(scaling="yarn", factor=2.0, keep_short_context=True),
        ScalingRequest(scaling="file"),
    ],
    ids=lambda each: each.name,
)
def test_the_options_of_a_request_make_it_again(request_: ScalingRequest) -> None:
    """What `patch_command` writes, the command reads: each number to its last digit."""
    command = typer.main.get_command(build_app("patch")).commands["patch"]  # type: ignore[attr-defined]
    words = ["m.gguf", "-o", "o.gguf", *scaling_options(request_)]
    given = command.make_context("patch", words).params
    assert ScalingOptions.of({name: given[name] for name in FLAGS}).request() == request_


def test_a_trained_factor_is_not_lowered(cli: Call, tmp_path: Path) -> None:
    """Gemma 3's case: a trained linear factor of 8 must not become 2."""
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    path = build("gemma3", tmp_path / "m.gguf", context=2048, keys=keys)[0]
    for words in (
        ("--scaling", "linear", "--target-ctx", "4096"),
        ("--scaling", "linear", "--target-ctx", "4096", "--orig-ctx", "2048"),
        ("--scaling", "linear", "--orig-ctx", "256", "--factor", "16"),
    ):
        found = cli(
            "patch", path, "-o", tmp_path / "right.gguf", *words, "--dry-run", "--json"
        ).json
        edits = {edit["key"]: edit["new"] for edit in found["edits"]}
        assert edits["gemma3.rope.scaling.factor"] == 16.0
        assert edits["gemma3.context_length"] == 4096
        assert edits["ggufrope.rope.trained_context_length"] == 2048
        assert found["trained_context"]["tokens"] == 2048
    wrong = ("--scaling", "yarn", "--target-ctx", "4096", "--orig-ctx", "256")
    outcome = cli("patch", path, "-o", tmp_path / "o.gguf", *wrong)
    assert outcome.code == 2
    assert "--orig-ctx 256 is not where a scaling of this file starts" in outcome.err
    assert "--replace-scaling" in outcome.err
    assert cli("patch", path, "-o", tmp_path / "o.gguf", *wrong, "--replace-scaling").code == 0


def test_a_second_patch_starts_from_the_trained_rotation(cli: Call, tmp_path: Path) -> None:
    """YaRN after NTK: from the base that the model was trained with, not from the stretched one."""
    path = build("llama", tmp_path / "m.gguf", context=512)[0]
    direct = build("llama", tmp_path / "direct.gguf", context=512)[0]
    original = path.read_bytes()
    ntk = ("--in-place", "--scaling", "ntk", "--target-ctx", "1024")
    assert cli("patch", path, *ntk).code == 0
    assert cli("undo", path).code == 0
    assert path.read_bytes() == original
    assert cli("patch", path, *ntk).code == 0
    yarn = ("--in-place", "--scaling", "yarn", "--target-ctx", "4096")
    assert cli("patch", path, *yarn).code == 0
    assert cli("patch", direct, *yarn).code == 0
    found, wanted = (cli("inspect", file, "--json").json for file in (path, direct))
    assert found["effective"]["groups"] == wanted["effective"]["groups"]
    assert found["trained_context"]["tokens"] == 512
    assert "an earlier patch left" in found["trained_context"]["source"]
    keys = {change["key"] for change in cli("diff", path, direct, "--json").json["keys"]}
    assert not any(key.startswith("llama.") for key in keys)


def test_none_takes_a_scaling_of_ours_back(cli: Call, tmp_path: Path) -> None:
    path = build("llama", tmp_path / "m.gguf", context=512)[0]
    once, back = tmp_path / "once.gguf", tmp_path / "back.gguf"
    yarn = ("--scaling", "yarn", "--target-ctx", "2048", "--bake")
    assert cli("patch", path, "-o", once, *yarn).code == 0
    assert cli("patch", once, "-o", back, "--scaling", "none").code == 0
    found, wanted = (cli("inspect", file, "--json").json for file in (back, path))
    assert found["effective"]["groups"] == wanted["effective"]["groups"]
    assert found["trained_context"] == wanted["trained_context"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("512", "--target-ctx 512 is what the file reaches as it is: nothing to extend"),
        ("128", "--target-ctx 128 is below the 512 tokens that the file reaches"),
        ("99999999999", "--target-ctx 99999999999 is more than 10000 times the 512 tokens"),
    ],
)
def test_a_target_that_is_no_extension_is_refused(
    cli: Call, llama: Path, tmp_path: Path, target: str, said: str
) -> None:
    for scaling in ("linear", "ntk", "yarn"):
        words = ("--scaling", scaling, "--target-ctx", target)
        outcome = cli("patch", llama, "-o", tmp_path / "out.gguf", *words)
        assert outcome.code == 2
        assert said in outcome.err
    assert not (tmp_path / "out.gguf").exists()


def test_a_far_target_is_written_with_a_warning(cli: Call, llama: Path, tmp_path: Path) -> None:
    words = ("patch", llama, "-o", tmp_path / "out.gguf", "--scaling", "yarn", "--dry-run")
    near = cli(*words, "--target-ctx", "4k")
    far = cli(*words, "--target-ctx", "32k")
    assert "is far" not in near.out
    assert "warning: 64 times the trained context is far: " in " ".join(far.out.split())


def test_sections_of_a_config_that_no_patch_writes_are_named(
    cli: Call, llama: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    scaling = {"rope_type": "mrope", "mrope_section": [16, 24, 24]}
    config.write_text(json.dumps({"max_position_embeddings": 2048, "rope_scaling": scaling}))
    words = ("patch", llama, "-o", tmp_path / "o.gguf", "--from-config", config, "--dry-run")
    (note,) = cli(*words, "--json").json["notes"]
    assert note.startswith("not carried over: mrope_section [16, 24, 24]")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-o", "absent/"), "-o absent/: a folder; name a file in it"),
        (("-o", "-"), "-o -: name a file"),
        (("-o", "o", "--dry-run", "--hash-weights"), "--hash-weights: a dry run writes nothing"),
    ],
)
def test_what_cannot_be_meant_is_not_written(
    cli: Call, llama: Path, words: tuple[str, ...], says: str
) -> None:
    outcome = cli("patch", llama, *YARN, *words)
    assert outcome.code == 2
    assert says in outcome.err
    assert list(Path.cwd().iterdir()) == []


def test_factors_on_a_full_disk_leave_no_file(cli: Call, tmp_path: Path, small_disk: Path) -> None:
    model = tmp_path / "f.gguf"
    build("llama", model, factors={"rope_freqs.weight": np.linspace(1, 8, 16)})
    (small_disk / "full").write_bytes(bytes(1 << 16))
    outcome = cli("factors", model, "--export", small_disk / "f.json")
    assert outcome.code == 3
    assert "No space left" in outcome.err
    assert [each.name for each in small_disk.iterdir()] == ["full"]
