"""What a plain handler's return value becomes."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math

import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.replica.http_values import to_reply

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def content_type(value: object) -> str:
    return dict(to_reply(value)[1])[b"content-type"].decode()


def body(value: object) -> bytes:
    return to_reply(value)[2]


class Point(pydantic.BaseModel):
    x: int
    when: datetime.date = datetime.date(2026, 1, 2)


@dataclasses.dataclass
class Pair:
    left: int
    right: list[str]


class Packed(msgspec.Struct):
    size: int


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected_type", "expected_body"),
    (
        (None, "text/plain", b""),
        (b"\x00\xff", "text/plain", b"\x00\xff"),
        (bytearray(b"ab"), "text/plain", b"ab"),
        (memoryview(b"ab"), "text/plain", b"ab"),
        ("", "text/plain; charset=utf-8", b""),
        ("grün", "text/plain; charset=utf-8", "grün".encode()),
        (Colour.RED, "text/plain; charset=utf-8", b"red"),
        ({"a": [1, 2.5, True, None]}, "application/json", b'{"a":[1,2.5,true,null]}'),
        (["grün"], "application/json", b'["gr\\u00fcn"]'),
        (1, "application/json", b"1"),
        (False, "application/json", b"false"),
        (math.nan, "application/json", b"NaN"),
        ([math.inf, -math.inf], "application/json", b"[Infinity,-Infinity]"),
        (np.int64(3), "application/json", b"3"),
        (np.float32(0.5), "application/json", b"0.5"),
        (np.array([[1, 2], [3, 4]]), "application/json", b"[[1,2],[3,4]]"),
        (
            {"scores": np.array([0.5]), "n": np.int8(1)},
            "application/json",
            b'{"scores":[0.5],"n":1}',
        ),
        ({np.int64(1): "one"}, "application/json", b'{"1":"one"}'),
        (Point(x=1), "application/json", b'{"x":1,"when":"2026-01-02"}'),
        ([Point(x=1)], "application/json", b'[{"x":1,"when":"2026-01-02"}]'),
        (Pair(1, ["b"]), "application/json", b'{"left":1,"right":["b"]}'),
        (Packed(7), "application/json", b'{"size":7}'),
        (ValueError("bad input"), "application/json", b'"bad input"'),
        ({"error": ValueError("bad")}, "application/json", b'{"error":"bad"}'),
        ((1, 2), "application/json", b"[1,2]"),
        ({3}, "application/json", b"[3]"),
    ),
)
def test_value_becomes_response(value: object, expected_type: str, expected_body: bytes) -> None:
    status, headers, found = to_reply(value)
    assert status == 200
    assert found == expected_body
    assert headers == [
        (b"content-type", expected_type.encode()),
        (b"content-length", str(len(expected_body)).encode()),
    ]


class FakeFrame:
    """Stands for a pandas DataFrame: pandas is not among the packages of this project."""

    def to_dict(self, orient: str) -> list[dict[str, object]]:
        assert orient == "records"
        return [{"a": np.int64(1)}, {"a": np.int64(2)}]


class FakeSeries:
    def tolist(self) -> list[int]:
        return [1, 2]


def test_data_frame_becomes_a_list_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    pandas = types.ModuleType("pandas")
    pandas.DataFrame = FakeFrame  # type: ignore[attr-defined]
    pandas.Series = FakeSeries  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert body(FakeFrame()) == b'[{"a":1},{"a":2}]'
    assert body({"column": FakeSeries()}) == b'{"column":[1,2]}'


@given(JSON.filter(lambda value: value is not None and not isinstance(value, str)))
def test_json_values_survive(value: object) -> None:
    _, headers, found = to_reply(value)
    assert json.loads(found) == value
    assert found.isascii()
    assert dict(headers)[b"content-length"] == str(len(found)).encode()


@given(st.integers(min_value=0, max_value=600))
def test_content_length_is_exact_on_both_sides_of_the_table(size: int) -> None:
    assert dict(to_reply(b"x" * size)[1])[b"content-length"] == str(size).encode()


def test_header_list_is_the_callers_own() -> None:
    to_reply(None)[1].append((b"x-request-id", b"1"))
    to_reply(b"")[1].append((b"x-request-id", b"1"))
    assert len(to_reply(None)[1]) == len(to_reply(b"")[1]) == 2


class Slotted:
    __slots__ = ()


def circle() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("value", "named"), ((Slotted(), "Slotted"), ({"a": Slotted()}, "dict"), (circle(), "list"))
)
def test_hopeless_value_is_named_with_its_origin_and_what_is_allowed(
    value: object, named: str
) -> None:
    with pytest.raises(TypeError) as caught:
        to_reply(value, "default/Model.__call__")
    text = str(caught.value)
    assert text.startswith("default/Model.__call__ returned a ")
    assert named in text
    assert "Starlette response" in text
    assert "\n" not in text
    # One traceback: what the encoders said is in the text already.
    assert caught.value.__suppress_context__


def test_the_article_fits_the_type() -> None:
    with pytest.raises(TypeError, match="returned an object, which"):
        to_reply(object())


def test_generator_is_refused_with_the_way_to_stream() -> None:
    with pytest.raises(TypeError, match=r"generator.*StreamingResponse"):
        to_reply(n for n in range(3))


def test_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="no valid text"):
        to_reply("\ud800")
