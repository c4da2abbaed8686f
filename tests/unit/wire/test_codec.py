"""Values that are not plain, and JSON that does not depend on the order of keys."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest

from remora.wire.codec import pack, to_json, to_ordered_json


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.str_("a"), "a"),
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (Fraction(1, 2), 0.5),
    ],
)
def test_texts_and_numbers_of_other_classes_are_written_as_plain_ones(
    given: Any, plain: object
) -> None:
    assert msgspec.msgpack.decode(pack([given])) == [plain]
    assert to_json([given]) == to_json([plain])
    assert to_ordered_json({0: given}) == to_ordered_json({0: plain})


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(TypeError, match="ndarray"):
        pack([np.arange(3)])


def test_ordered_json_is_the_same_for_equal_values() -> None:
    assert to_ordered_json({"b": 1, "a": [{"d": 1, "c": 2}]}) == b'{"a":[{"c":2,"d":1}],"b":1}'
    one = {"x": {10: "a", 2: {"q": 1, "p": 2}, "k": 1, None: 0}}
    other = {"x": {None: 0, "k": 1, 2: {"p": 2, "q": 1}, 10: "a"}}
    assert to_ordered_json(one) == to_ordered_json(other)


def test_a_number_is_not_the_text_that_looks_like_it() -> None:
    keys: list[Any] = [1, "1", 1.0, True, None, "None"]
    assert len({to_ordered_json({key: 0, 7: 0}) for key in keys}) == len(keys)
