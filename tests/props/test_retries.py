"""What a lost replica means for its requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.retries import MAX_ATTEMPTS, Again, is_made_again

flags = st.booleans()
attempts = st.integers(0, 2 * MAX_ATTEMPTS)


@given(flags, flags, attempts)
def test_what_was_never_begun_is_made_again_in_any_case(
    answered: bool, repeatable: bool, attempt: int
) -> None:
    again = is_made_again(
        never_started=True, answered=answered, repeatable=repeatable, attempt=attempt
    )
    assert again is Again.FREE


@given(flags, flags, attempts)
def test_what_was_begun_is_made_again_only_where_nobody_can_be_harmed(
    answered: bool, repeatable: bool, attempt: int
) -> None:
    again = is_made_again(
        never_started=False, answered=answered, repeatable=repeatable, attempt=attempt
    )
    harmless = repeatable and not answered
    assert again is (Again.AT_A_PRICE if harmless and attempt < MAX_ATTEMPTS - 1 else Again.NO)


def test_a_request_that_kills_whoever_has_it_is_given_to_few() -> None:
    attempt = 0
    while is_made_again(never_started=False, answered=False, repeatable=True, attempt=attempt):
        attempt += 1
    assert attempt + 1 == MAX_ATTEMPTS
