"""`@method` marks and changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest

import remora as serve
from remora.method import idempotent_methods, is_idempotent


class Store:
    @serve.method(idempotent=True)
    def get(self, key: str) -> str:
        return key

    def add(self, key: str) -> str:
        return key

    @staticmethod
    @serve.method(idempotent=True)
    def version() -> int:
        return 1

    @property
    def size(self) -> int:
        raise RuntimeError("never asked")


def test_the_decorated_function_is_the_function_itself() -> None:
    def get() -> int:
        return 1

    assert serve.method(idempotent=True)(get) is get
    assert is_idempotent(get)


def test_names_marked_methods_and_no_others() -> None:
    assert idempotent_methods(Store) == ("get", "version")


def test_an_override_counts_as_it_is_written() -> None:
    class Careless(Store):
        def get(self, key: str) -> str:
            return key * 2

    class Same(Store):
        pass

    assert idempotent_methods(Careless) == ("version",)
    assert idempotent_methods(Same) == ("get", "version")


def test_a_mark_can_be_taken_back() -> None:
    class Careful(Store):
        @serve.method(idempotent=False)
        def get(self, key: str) -> str:
            return key

    assert idempotent_methods(Careful) == ("version",)


def test_a_marked_function_is_called_by_the_name_of_call() -> None:
    @serve.method(idempotent=True)
    def answer() -> int:
        return 42

    assert idempotent_methods(answer) == ("__call__",)
    assert idempotent_methods(lambda: 1) == ()


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_refuses_what_is_no_bool(wrong: Any) -> None:
    with pytest.raises(TypeError, match="must be a bool"):
        serve.method(idempotent=wrong)


@pytest.mark.parametrize("wrong", [Store, 3])
def test_refuses_what_is_no_function(wrong: Any) -> None:
    with pytest.raises(TypeError, match="@method goes on a function"):
        serve.method(idempotent=True)(wrong)


def test_says_that_it_needs_parentheses() -> None:
    with pytest.raises(TypeError, match=r"needs parentheses.*@method\(idempotent=True\)"):
        serve.method(lambda: 1)  # type: ignore[call-overload]


def test_names_the_option_that_was_meant() -> None:
    with pytest.raises(TypeError, match=r"'idempotnt'\. Did you mean 'idempotent'"):
        serve.method(idempotnt=True)  # type: ignore[call-overload]
