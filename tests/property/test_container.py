"""Generated files: reading returns what was written, and an edit changes what it names."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufrope.container.checks import layout_findings
from ggufrope.container.reader import parse_header, read_array, read_header, read_tensor
from ggufrope.container.recovery import undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import ArrayValue, Edits, TensorData, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import MalformedError, RequestError
from tests.container.faults import CapableFiles
from tests.container.writer import ARRAY, STRING
from tests.property.strategies import SCALARS, models, scalars

if TYPE_CHECKING:
    from ggufrope.container.types import Header
    from tests.container.writer import Model

settings.register_profile(
    "container", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
profile = settings(settings.get_profile("container"))


def parse(data: bytes) -> Header:
    return parse_header(io.BytesIO(data), len(data))


@profile
@given(models())
def test_reads_what_was_written(model: Model) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(model.encoded())
        header = read_header(path)
        assert (header.version, header.byte_order) == (model.version, model.order)
        assert header.alignment == model.alignment
        assert len(header.key_values) == len(model.metadata)
        for kv, (key, kind, value) in zip(header.key_values, model.metadata, strict=True):
            assert (kv.key, kv.type) == (key, kind)
            if kind != ARRAY:
                assert kv.value == value
                continue
            assert isinstance(kv.value, ArrayValue)
            assert (kv.value.item_type, kv.value.count) == (value[0], len(value[1]))
            if value[0] != ARRAY:
                assert read_array(path, header, kv) == tuple(value[1])
        for tensor, wanted in zip(header.tensors, model.tensors, strict=True):
            assert (tensor.name, tensor.shape, tensor.type) == (
                wanted.name,
                wanted.shape,
                wanted.type,
            )
            assert read_tensor(path, header, tensor.name) == wanted.data
        keys = [key for key, _, _ in model.metadata]
        findings = {finding.code for finding in layout_findings(header)}
        assert ("duplicate-key" in findings) == (len(set(keys)) < len(keys))
        assert "tensor-offset" not in findings


@profile
@given(models(), st.data())
def test_spans_cover_the_header(model: Model, data: st.DataObject) -> None:
    """Records follow each other without gap or overlap, so copying spans copies the header."""
    header = parse(model.encoded())
    end = 24
    for span in (record.span for part in (header.key_values, header.tensors) for record in part):
        assert span.offset == end
        end = span.end
    assert 0 <= header.data_offset - end < header.alignment


@profile
@given(models(), st.data())
def test_a_truncated_file_is_malformed_or_complete(model: Model, data: st.DataObject) -> None:
    whole = model.encoded()
    cut = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    try:
        header = parse(whole[:cut])
    except MalformedError:
        return
    # Only what no tensor needs may be missing: padding, trailing bytes.
    needed = max((header.data_span(tensor).end for tensor in header.tensors), default=0)
    assert needed <= cut


@profile
@given(models(), st.data())
def test_damage_is_malformed_or_read(model: Model, data: st.DataObject) -> None:
    damaged = bytearray(model.encoded())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    offset: int | None = 0
    try:
        parse(bytes(damaged))
    except MalformedError as error:
        offset = error.offset
    assert offset is not None
    assert 0 <= offset <= len(damaged)


@profile
@given(models(plain=True))
def test_gguf_reads_the_same(model: Model) -> None:
    """Differential: names, types and values as the `gguf` package's own reader has them."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(model.encoded())
        theirs = GGUFReader(path)
        ours = read_header(path)
        fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
        assert list(fields) == [kv.key for kv in ours.key_values]
        for kv in ours.key_values:
            compare_field(path, ours, kv, fields[kv.key])
        assert ours.data_offset == theirs.data_offset
        for tensor, other in zip(ours.tensors, theirs.tensors, strict=True):
            assert (tensor.name, tensor.type) == (other.name, other.tensor_type)
            assert list(tensor.shape) == other.shape.tolist()
            assert ours.data_offset + tensor.offset == other.data_offset
            assert tensor.length == other.n_bytes


def compare_field(path: Path, header: Header, kv: Any, field: Any) -> None:
    assert kv.type == field.types[0]
    if field.types[0] is GGUFValueType.ARRAY:
        assert kv.value.count == len(field.data)
        if not field.data:
            return
        assert kv.value.item_type == field.types[1]
        mine: Any = read_array(path, header, kv)
        parts = [field.parts[at] for at in field.data]
    else:
        mine, parts = (kv.value,), [field.parts[-1]]
    for item, part in zip(mine, parts, strict=True):
        if isinstance(item, str):
            assert item.encode("utf-8", "surrogateescape") == bytes(part)
        else:
            assert np.array(item, part.dtype) == part[0]


@st.composite
def edits(draw: st.DrawFn, model: Model) -> Edits:
    keys = [key for key, _, _ in model.metadata if key and key != "general.alignment"]
    names = [tensor.name for tensor in model.tensors]
    new_keys = st.from_regex(r"new\.[a-z]{1,5}", fullmatch=True)
    targets = draw(
        st.lists(st.one_of(new_keys, *([st.sampled_from(keys)] if keys else [])), max_size=4)
    )
    values = {}
    for key in targets:
        kind = draw(SCALARS)
        if draw(st.booleans()):
            content = TypedValue(type=ValueType(kind), value=draw(scalars(kind)))
        else:
            items = tuple(draw(st.lists(scalars(kind), max_size=4)))
            content = TypedValue(type=ValueType.ARRAY, value=items, item_type=ValueType(kind))
        values[key] = content
    gone = draw(st.sets(st.sampled_from(names), max_size=2)) if names else set()
    left = [name for name in names if name not in gone]
    renamed = {left[0]: "renamed"} if draw(st.booleans()) and left else {}
    put = {}
    for name in draw(st.lists(st.sampled_from(["added", "other", *left[1:]]), max_size=2)):
        data = draw(st.binary(min_size=1, max_size=70))
        put[name] = TensorData(shape=(len(data),), data=data, type=24)
    return Edits(
        set=values,
        remove=frozenset(key for key in set(keys) - set(values) if draw(st.booleans())),
        put_tensors=put,
        remove_tensors=frozenset(gone),
        rename_tensors=renamed,
    )


@profile
@given(models(), st.data())
def test_edits_change_what_they_name_and_undo_restores(model: Model, data: st.DataObject) -> None:
    change = data.draw(edits(model))
    reserve = data.draw(st.sampled_from([None, None, 0, 100]))
    files = CapableFiles()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(model.encoded())
        before = read_header(path)
        rewrite = plan_rewrite(before, change, reserve=reserve)
        receipt = execute(
            plan_store(path, rewrite, files=files, force={"in-use"}), verify_all=True, files=files
        )
        after = receipt.header
        assert (after.version, after.byte_order) == (model.version, model.order)
        check_keys(model, change, path, after)
        check_tensors(model, change, path, after)
        assert path.read_bytes().endswith(model.trailing)
        assert "tensor-offset" not in {finding.code for finding in layout_findings(after)}
        if receipt.undoable and path.read_bytes() != model.encoded():
            undo(path, force={"in-use"}, files=files)
            assert path.read_bytes() == model.encoded()


def check_keys(model: Model, change: Edits, path: Path, header: Header) -> None:
    old = [key for key, _, _ in model.metadata]
    expected = [
        k
        for n, k in enumerate(old)
        if k not in change.remove and (k not in change.set or k not in old[:n])
    ]
    expected += [key for key in change.set if key not in old]
    found = [kv for kv in header.key_values if kv.key != "ggufrope.padding"]
    assert [kv.key for kv in found] == expected
    for kv in found:
        wanted = change.set.get(kv.key)
        if wanted is not None:
            assert kv.type is wanted.type
            value = read_array(path, header, kv) if kv.type is ValueType.ARRAY else kv.value
            assert value == wanted.value


def check_tensors(model: Model, change: Edits, path: Path, header: Header) -> None:
    expected = {
        change.rename_tensors.get(tensor.name, tensor.name): tensor.data
        for tensor in model.tensors
        if tensor.name not in change.remove_tensors
    }
    expected |= {name: tensor.data for name, tensor in change.put_tensors.items()}
    assert [tensor.name for tensor in header.tensors] == list(expected)
    assert {name: read_tensor(path, header, name) for name in expected} == expected


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_strings_that_are_no_bytes_are_refused(text: str) -> None:
    header = parse(b"GGUF\x03\0\0\0" + bytes(16))
    with pytest.raises(RequestError):
        plan_rewrite(header, Edits(set={"k": TypedValue(type=ValueType(STRING), value=text)}))
