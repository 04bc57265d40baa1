from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.rope.factors import (
    FactorFormat,
    FactorSet,
    first_descent,
    format_factors,
    parse_factors,
)


def parse(text: str | bytes, form: FactorFormat = "json") -> FactorSet:
    data = text.encode() if isinstance(text, str) else text
    return parse_factors(data, form=form, name="f")


def npy(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array))
    return stream.getvalue()


def test_json_spellings() -> None:
    assert parse("[1, 2.5]") == FactorSet(factors=(1.0, 2.5))
    assert parse('{"rope_freqs.weight": [1, 2]}') == FactorSet(factors=(1.0, 2.0))
    nested = {"rope_scaling": {"type": "su", "long_factor": [2, 3], "short_factor": [1, 1]}}
    assert parse(json.dumps(nested)) == FactorSet(long=(2.0, 3.0), short=(1.0, 1.0))


def test_csv_with_and_without_a_header() -> None:
    assert parse("1.0\n2.0\n", "csv") == FactorSet(factors=(1.0, 2.0))
    assert parse("0,1.0\n1,2.0", "csv") == FactorSet(factors=(1.0, 2.0))
    assert parse("pair,long,short\r\n0,2,1\r\n1,3,1\r\n", "csv") == FactorSet(
        long=(2.0, 3.0), short=(1.0, 1.0)
    )


def test_npy_vectors_and_pairs() -> None:
    assert parse(npy([1.0, 2.0]), "npy") == FactorSet(factors=(1.0, 2.0))
    assert parse(npy([[2, 3], [1, 1]]), "npy") == FactorSet(long=(2.0, 3.0), short=(1.0, 1.0))


@pytest.mark.parametrize(
    ("data", "form", "message"),
    [
        ("[1, 0]", "json", r"f: factors\[1\] is 0: expected a finite number above 0"),
        ("[1, -2]", "json", r"factors\[1\] is -2"),
        ("[1, NaN]", "json", r"f\[1\] is nan"),
        ("[1, Infinity]", "json", r"factors\[1\] is inf"),
        ('[1, "x"]', "json", r"f\[1\] is 'x': expected a number"),
        ("[true]", "json", r"f\[0\] is True"),
        ("[]", "json", "is empty"),
        ("3", "json", "is a JSON int"),
        ("{}", "json", "has no factors"),
        ('{"long_factor": 3}', "json", "long_factor is of type int: expected a list"),
        ("{", "json", "is not JSON"),
        ("[" * 100_000, "json", "is not JSON"),
        ("", "csv", "is empty"),
        ("pair,long\n0", "csv", "line 2 has 1 cells: expected 2"),
        (b"\xff\xfe", "csv", "is not text"),
        ("1\nx", "csv", r"\[1\] is 'x'"),
        (b"\x93NUMPY", "npy", "is not an npy array"),
        (b"", "npy", "is not an npy array"),
        (npy(["a"]), "npy", "is not an npy array"),
        (npy(np.ones((2, 2, 2))), "npy", r"shape \(2, 2, 2\)"),
    ],
)
def test_files_without_factors_give_one_clear_line(
    data: str | bytes, form: FactorFormat, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        parse(data, form)
    assert "\n" not in str(error.value)


values = st.lists(st.floats(0.0625, 1e6, width=32), min_size=1, max_size=64).map(tuple)


@given(factors=values, form=st.sampled_from(["json", "csv", "npy"]))
def test_what_is_written_is_read(factors: tuple[float, ...], form: FactorFormat) -> None:
    for whole in (FactorSet(factors=factors), FactorSet(long=factors, short=factors)):
        assert parse(format_factors(whole, form=form), form) == whole


@given(data=st.binary(max_size=200), form=st.sampled_from(["json", "csv", "npy"]))
def test_any_bytes_give_factors_or_the_domain_error(data: bytes, form: FactorFormat) -> None:
    try:
        parse(data, form)
    except RequestError:
        return


def test_long_factors_alone_do_not_fit_npy() -> None:
    with pytest.raises(RequestError, match="npy holds one array"):
        format_factors(FactorSet(long=(1.0,)), form="npy")


def test_first_descent() -> None:
    assert first_descent((1, 2, 2, 1.5, 3)) == 3
    assert first_descent((1, 1, 2)) is None
