from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.core.replica_state import (
    LIVE,
    MEANING,
    ROUTABLE,
    STAYING,
    TERMINAL,
    TRANSITIONS,
    Cause,
    InvalidTransition,
    Replica,
    ReplicaState,
    story,
    transition,
)
from remora.types import ReplicaID


def fresh(state: ReplicaState = ReplicaState.PENDING) -> Replica:
    return Replica(replica_id=ReplicaID("app/d#1"), version="v", state=state)


@given(st.lists(st.sampled_from(Cause), max_size=30))
def test_only_edges_of_the_table_are_taken(causes: list[Cause]) -> None:
    replica = fresh()
    for number, cause in enumerate(causes):
        expected = TRANSITIONS.get((replica.state, cause))
        if expected is None:
            with pytest.raises(InvalidTransition, match=r"app/d#1 is "):
                transition(replica, cause, float(number))
        else:
            moved = transition(replica, cause, float(number), event_id=number)
            assert moved.state is expected
            assert moved.since_s == float(number)
            assert moved.history[-1].event_id == number
            assert moved.was_ready == (replica.was_ready or expected is ReplicaState.RUNNING)
            replica = moved


@pytest.mark.parametrize("cause", list(Cause))
def test_nothing_follows_a_terminal_state(cause: Cause) -> None:
    for state in TERMINAL:
        with pytest.raises(InvalidTransition):
            transition(fresh(state), cause, 0.0)


@pytest.mark.parametrize("state", sorted(LIVE))
def test_every_living_replica_stops_when_its_process_goes(state: ReplicaState) -> None:
    assert transition(fresh(state), Cause.GONE, 0.0).state is ReplicaState.STOPPED


def test_every_state_is_explained_and_reached_and_in_one_group() -> None:
    assert set(MEANING) == set(ReplicaState)
    assert set(TRANSITIONS.values()) | {ReplicaState.PENDING} == set(ReplicaState)
    assert set(ReplicaState) == LIVE | TERMINAL
    assert not LIVE & TERMINAL
    assert ROUTABLE < STAYING < LIVE
    assert {cause for _, cause in TRANSITIONS} == set(Cause)


def test_an_illegal_transition_tells_the_story() -> None:
    replica = transition(fresh(), Cause.PROCESS_STARTED, 1.0, at_unix_s=10.0, event_id=7)
    replica = transition(replica, Cause.READY, 2.5, at_unix_s=11.5, event_id=9, detail="warm")
    with pytest.raises(InvalidTransition) as caught:
        transition(replica, Cause.IDLE, 3.0, event_id=12)
    text = str(caught.value)
    assert "app/d#1 is RUNNING, where 'idle' cannot happen (event 12)" in text
    assert "+0.000s PENDING -> STARTING: process started [event 7]" in text
    assert "+1.500s STARTING -> RUNNING: ready (warm) [event 9]" in text


def test_the_story_of_a_fresh_replica_says_so_and_a_long_one_is_cut() -> None:
    assert "nothing happened" in story(fresh())
    replica = fresh(ReplicaState.STARTING)
    for number in range(40):
        replica = transition(replica, Cause.READY, 0.0, event_id=number)
        replica = transition(replica, Cause.CONTROLLER_RESTARTED, 0.0, event_id=number)
    assert len(story(replica).splitlines()) == 12
