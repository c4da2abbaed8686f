"""Python values between processes: equal on the other side, buffers not copied into the pickle."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.wire import parcel, values

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def there_and_back(value: Any) -> Any:
    data, buffers = values.dumps(value)
    views = [buffer.raw() for buffer in buffers]
    body = parcel.join(data, views, [0] * len(views)) if views else data
    return values.loads(memoryview(body))


@given(plain)
def test_plain_values_survive(value: Any) -> None:
    assert there_and_back(value) == value


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=4))
def test_arrays_travel_beside_the_pickle(lengths: list[int]) -> None:
    arrays: list[Any] = [np.arange(n, dtype=np.int64) for n in lengths]
    data, buffers = values.dumps(arrays)
    assert len(buffers) == len(arrays)
    assert len(data) < 1000
    for got, sent in zip(there_and_back(arrays), arrays, strict=True):
        np.testing.assert_array_equal(got, sent)


def test_bytearrays_as_buffers_are_read_only_views() -> None:
    got = there_and_back([pickle.PickleBuffer(bytearray(b"abc")), 1])
    assert bytes(got[0]) == b"abc"
    assert got[1] == 1


@pytest.mark.parametrize("order", ("C", "F"))
def test_layouts_survive(order: Any) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), order=order)
    np.testing.assert_array_equal(there_and_back(array), array)
    np.testing.assert_array_equal(there_and_back(array[::2, ::3]), array[::2, ::3])


def test_what_lives_in_main_goes_by_value() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Mine:\n    x = 5\ndef double(n): return 2 * n", space)
    data, _ = values.dumps((space["Mine"](), space["double"]))
    assert data == cloudpickle.dumps((space["Mine"](), space["double"]), 5) or b"double" in data
    instance, double = values.loads(data)
    assert instance.x == 5
    assert double(4) == 8


def test_what_plain_pickle_cannot_goes_by_cloudpickle() -> None:
    assert there_and_back(lambda x: x + 1)(1) == 2


def test_what_nobody_can_pickle_is_an_error() -> None:
    with pytest.raises(TypeError):
        values.dumps(threading.Lock())
