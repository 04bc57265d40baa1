"""Commands to paste: every field, every hostile name, and back through the option parser."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ggufrope.errors import RequestError
from ggufrope.patching.command import (
    FLAGS,
    command_line,
    compare_command,
    patch_command,
    probe_command,
    scaling_options,
    search_command,
    serve_command,
    validate_command,
)
from ggufrope.patching.request import ScalingRequest


def test_a_command_is_ready_to_paste() -> None:
    request = ScalingRequest(scaling="yarn", target_context=32768, original_context=8192)
    assert patch_command(request, Path("m.gguf"), "out.gguf") == (
        "ggufrope patch m.gguf -o out.gguf --scaling yarn --target-ctx 32768 --orig-ctx 8192"
    )


def test_every_field_but_the_label_has_a_flag() -> None:
    assert set(FLAGS) == {field.name for field in fields(ScalingRequest)} - {"label"}
    assert len(set(FLAGS.values())) == len(FLAGS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scaling": "yarn", "factor": 4.0}, ["--scaling", "yarn", "--factor", "4"]),
        ({"scaling": "yarn", "factor": 1 / 3}, ["--scaling", "yarn", "--factor", repr(1 / 3)]),
        ({"scaling": "none", "freq_base": 1e6}, ["--scaling", "none", "--freq-base", "1e+06"]),
        ({"scaling": "yarn", "ext_factor": 0.0}, ["--scaling", "yarn", "--ext-factor", "0"]),
        ({"scaling": "linear", "bake": True}, ["--scaling", "linear", "--bake"]),
        ({"scaling": "file", "from_config": "c.json"}, ["--from-config", "c.json"]),
        ({"scaling": "file"}, []),
        ({"scaling": "none", "label": "plain"}, ["--scaling", "none"]),
        (
            {"scaling": "factors", "long_factors": (1.0, 2.5)},
            ["--scaling", "factors", "--long-factors", "[1.0, 2.5]"],
        ),
    ],
)
def test_options(given: dict[str, Any], words: list[str]) -> None:
    assert list(scaling_options(ScalingRequest(**given))) == words


@pytest.mark.parametrize("name", ["a b.gguf", "$(reboot).gguf", "it's.gguf", "a;b.gguf", "\n.gguf"])
def test_names_are_quoted(name: str) -> None:
    request = ScalingRequest(scaling="yarn", factor=2, long_factors=name)
    command = patch_command(request, name, name)
    assert shlex.split(command)[2:5] == [name, "-o", name]
    assert shlex.split(command)[-1] == name


def test_a_name_cannot_pose_as_an_option() -> None:
    command = patch_command(ScalingRequest(scaling="none"), "-x.gguf", "--json")
    assert shlex.split(command)[2:5] == ["./-x.gguf", "-o", "./--json"]


def test_the_model_as_it_stands_needs_no_patch() -> None:
    with pytest.raises(RequestError, match="needs no patch"):
        patch_command(ScalingRequest(scaling="file"), "m.gguf", "out.gguf")


def test_commands_that_measure_search_and_serve() -> None:
    assert probe_command("-a.gguf") == "ggufrope probe ./-a.gguf"
    assert validate_command("m.gguf", [512, 1024]) == "ggufrope validate m.gguf --ctx 512,1024"
    assert validate_command("m.gguf") == "ggufrope validate m.gguf"
    assert compare_command("m.gguf", ["none", "yarn"], 1024) == (
        "ggufrope compare m.gguf --target-ctx 1024 --scaling none,yarn"
    )
    assert search_command("a b", 2048) == "ggufrope search 'a b' --target-ctx 2048"
    assert serve_command("a b", 2048) == "llama-server -m 'a b' -c 2048"


def test_any_words_make_a_command() -> None:
    assert command_line("search", "a b") == "ggufrope search 'a b'"
