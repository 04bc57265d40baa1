"""`ggufrope diff` and `verify`: what differs is seen, also where it would look the same."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Call
from tests.container.writer import ARRAY, STRING, Model, Tensor

NUMBERS = [str(number) for number in range(20)]


def test_rows_that_would_look_the_same_say_what_differs(cli: Call, tmp_path: Path) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    pairs = {
        "type": ((4, 5), (10, 5)),
        "end": ((STRING, "x" * 900 + "a"), (STRING, "x" * 900 + "b")),
        "item": ((ARRAY, (STRING, NUMBERS)), (ARRAY, (STRING, [*NUMBERS[:-1], "other"]))),
        "rounded": ((12, 10000.0), (12, 10000.01)),
        "true": ((7, True), (7, True)),
    }
    for path, side in ((a, 0), (b, 1)):
        metadata = [(key, *pair[side]) for key, pair in pairs.items()]
        path.write_bytes(Model(metadata=metadata).encoded())
    rows = [line.split(maxsplit=1) for line in cli("diff", a, b).out.splitlines() if line.strip()]
    shown = {name: " ".join(cells.split()) for name, cells in rows[2:]}
    assert shown["type"] == "5 (uint32) 5 (uint64)"
    assert shown["end"] == "from character 880: from character 880:"
    assert shown["xxxxxxxxxxxxxxxxxxxxa"] == "xxxxxxxxxxxxxxxxxxxxb"
    assert shown["item"] == "20 string, item 19: 19 20 string, item 19: other"
    assert shown["rounded"] == "10000.0 10000.01"
    assert "true" not in shown
    keys = {each["key"]: each for each in cli("diff", a, b, "--json").json["keys"]}
    assert (keys["type"]["old_type"], keys["type"]["new_type"]) == ("uint32", "uint64")
    assert keys["item"]["at"] == 19
    assert (keys["item"]["old_item"], keys["item"]["new_item"]) == ("19", "other")


def test_weights_of_another_form_are_not_the_same(cli: Call, tmp_path: Path) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path, shape in ((a, (8, 16)), (b, (16, 8))):
        path.write_bytes(Model(tensors=[Tensor("t", shape, bytes(512))]).encoded())
    outcome = cli("verify", a, b)
    assert outcome.code == 1
    assert "differs: t (in shape, type or byte order)" in outcome.out
    assert cli("verify", a, b, "--json").json["other_form"] == ["t"]
