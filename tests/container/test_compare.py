"""diff and verify between files, and digests that only tensor bytes change."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.container.compare import diff, tensor_digests, verify, weights_digest
from ggufrope.container.reader import read_header
from ggufrope.container.shards import open_model
from tests.container.test_shards import split
from tests.container.writer import Model, Tensor, small_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "a.gguf", tmp_path / "b.gguf"


def write(path: Path, model: Model) -> None:
    path.write_bytes(model.encoded())


def test_equal_files(pair: tuple[Path, Path]) -> None:
    a, b = pair
    write(a, small_model())
    write(b, small_model(trailing=b"tail"))
    difference = diff(a, b)
    assert (difference.keys, difference.tensors) == ((), ())
    assert verify(a, b).differing == ()


def test_the_other_byte_order_says_the_same(pair: tuple[Path, Path]) -> None:
    a, b = pair
    write(a, small_model())
    write(b, small_model(order=">"))
    assert diff(a, b).keys == ()
    changed = small_model(order=">")
    changed.metadata[6] = (*changed.metadata[6][:2], (8, ["<s>", "", "b\n", "\udcff\udcfe", "é"]))
    write(b, changed)
    assert [each.key for each in diff(a, b).keys] == ["tokenizer.ggml.tokens"]


def test_differences_are_listed_in_order(pair: tuple[Path, Path]) -> None:
    a, b = pair
    write(a, small_model())
    other = small_model()
    other.metadata[2] = ("llama.context_length", 10, 2048)
    del other.metadata[3]
    other.metadata[6] = ("tokenizer.ggml.scores", 9, (6, [0.5, -1.0, 2.0, 0.0, 0.5]))
    other.metadata.append(("new", 4, 1))
    other.tensors[1] = Tensor("rope_factors_long.weight", (4,), bytes(16))
    other.tensors[3] = Tensor("output_norm.weight", (2, 2), bytes(range(200, 216)))
    write(b, other)
    found = diff(a, b)
    assert [(each.key, each.old is None, each.new is None) for each in found.keys] == [
        ("llama.context_length", False, False),
        ("llama.rope.freq_base", False, True),
        ("tokenizer.ggml.scores", False, False),
        ("new", True, False),
    ]
    assert [each.name for each in found.tensors] == [
        "rope_freqs.weight",
        "output_norm.weight",
        "rope_factors_long.weight",
    ]


def test_verify_finds_a_flipped_bit(pair: tuple[Path, Path]) -> None:
    a, b = pair
    write(a, small_model())
    other = small_model()
    other.tensors[2].data = bytes([other.tensors[2].data[0] ^ 1]) + other.tensors[2].data[1:]
    del other.tensors[0]
    other.tensors.append(Tensor("more", (1,), bytes(4)))
    write(b, other)
    calls: list[tuple[int, int]] = []
    result = verify(a, b, workers=3, progress=lambda *call: calls.append(call))
    assert result.differing == ("blk.0.attn_q.weight",)
    assert (result.only_old, result.only_new) == (("token_embd.weight",), ("more",))
    assert result.old["output_norm.weight"] == hashlib.sha256(bytes(range(200, 216))).hexdigest()
    assert calls[-1] == (136, 136)


def test_the_same_bytes_of_another_form_differ(pair: tuple[Path, Path]) -> None:
    a, b = pair
    data = bytes(range(256)) * 2
    other_shape, other_type = Tensor("t", (16, 8), data), Tensor("t", (8, 16), data, 26)
    single = Tensor("t", (512,), data, 24)
    for one, other, order, same in (
        (Tensor("t", (8, 16), data), other_shape, "<", False),
        (Tensor("t", (8, 16), data), other_type, "<", False),
        (other_shape, other_shape, ">", False),
        (single, single, ">", True),
    ):
        write(a, Model(tensors=[one]))
        write(b, Model(tensors=[other], order=order))
        found = verify(a, b)
        assert (found.differing == (), found.other_form == ()) == (same, same)
        assert found.old == found.new


def test_a_split_model_is_one(tmp_path: Path) -> None:
    first = split(tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    other = split(folder)
    later = folder / "m-00002-of-00003.gguf"
    later.write_bytes(later.read_bytes()[:-1] + b"!")
    assert verify(first, other).differing == ("t11",)
    shards = open_model(first)
    single = tmp_path / "single.gguf"
    tensors = [Tensor(t.name, t.shape, bytes([int(t.name[1]), int(t.name[2])] * 16))
               for t in shards.tensors]  # fmt: skip
    write(single, Model(metadata=[("llama.context_length", 4, 2048)], tensors=tensors))
    found = verify(first, single)
    assert (found.differing, found.only_old, found.only_new) == ((), (), ())
    difference = diff(first, single)
    assert difference.tensors == ()
    assert [each.key for each in difference.keys] == [
        "split.no",
        "split.count",
        "split.tensors.count",
    ]


def test_a_difference_says_where_it_is(pair: tuple[Path, Path]) -> None:
    a, b = pair
    records: tuple[tuple[Any, Any, int | None, Any], ...] = (
        ((4, 5), (10, 5), None, (None, None)),
        ((8, "x" * 900 + "a"), (8, "x" * 900 + "b"), 900, ("a", "b")),
        ((8, "x"), (8, "xy"), 1, (None, "y")),
        ((9, (8, ["a", "b"])), (9, (8, ["a", "c"])), 1, ("b", "c")),
        ((9, (6, [0.0, 1.0])), (9, (6, [-0.0, 1.0])), 0, (0.0, -0.0)),
        ((9, (6, [0.0])), (9, (12, [0.0])), None, (None, None)),
    )
    for old, new, at, items in records:
        write(a, Model(metadata=[("k", *old)]))
        write(b, Model(metadata=[("k", *new)]))
        (found,) = diff(a, b).keys
        assert (found.at, found.items) == (at, items)


def test_every_byte_but_0_is_true(pair: tuple[Path, Path]) -> None:
    a, b = pair
    write(a, Model(metadata=[("k", 7, True), ("many", 9, (7, [True, False]))]))
    data = a.read_bytes()
    scalar = data.index(b"\x01", data.index(b"k\x07"))
    first = data.rindex(b"\x01\x00", 0, data.index(b"many") + 40)
    b.write_bytes(data[:scalar] + b"\xff" + data[scalar + 1 : first] + b"\x02" + data[first + 1 :])
    assert b.read_bytes() != data
    assert diff(a, b).keys == ()


def test_the_weights_digest_is_of_weights_alone(pair: tuple[Path, Path]) -> None:
    a, b = pair
    write(a, small_model())
    other = small_model(alignment=64)
    other.metadata = [("general.alignment", 4, 64)]
    other.tensors.reverse()
    write(b, other)
    one, two = (weights_digest(tensor_digests(path, read_header(path))) for path in pair)
    assert one == two
    other.tensors[0].name = "renamed"
    write(b, other)
    assert weights_digest(tensor_digests(b, read_header(b))) != one
