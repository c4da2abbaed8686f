"""Which release a rollback goes to, and what is told of each."""

from __future__ import annotations

import json

import pytest

from remora.config import DeploymentConfig
from remora.core import events as ev
from remora.core.releases import Record, ReleaseEvent, again, before_present, to_go_back_to, told
from remora.errors import ReleaseError
from remora.wire.control import DeclaredApplication
from remora.wire.releases import Outcome, ReleaseStatus


def config(*names: str, rollback_to: int = 0) -> ev.ConfigSubmitted:
    return ev.ConfigSubmitted(
        applications=tuple(
            DeclaredApplication(
                name=name, route_prefix=None, given=json.dumps({"name": name}).encode()
            )
            for name in names
        ),
        source="serve.yaml",
        rollback_to=rollback_to,
    )


def program(name: str, options: DeploymentConfig | None = None) -> ev.DeployRequested:
    deployment = ev.DeploymentRequest(
        name="D",
        code_key="code/1",
        code_version="v",
        config=options or DeploymentConfig(num_replicas=3),
    )
    return ev.DeployRequested(
        applications=(
            ev.ApplicationRequest(
                name=name, route_prefix="/", ingress="D", deployments=(deployment,)
            ),
        )
    )


def records(*events: ReleaseEvent) -> list[Record]:
    return [
        Record(number=number, unix_s=0.0, event=event) for number, event in enumerate(events, 1)
    ]


def test_each_is_told_in_the_words_of_a_config() -> None:
    first, second, third = told(
        records(config("a"), program("b"), ev.DeleteRequested(names=("b",)))
    )
    assert (first.kind, second.kind, third.kind) == ("config", "program", "delete")
    assert json.loads(first.said) == {"applications": [{"name": "a"}]}
    assert json.loads(second.said) == {
        "applications": [
            {
                "name": "b",
                "route_prefix": "/",
                "deployments": [{"name": "D", "code": "v", "num_replicas": 3}],
            }
        ]
    }
    assert json.loads(third.said) == {"deleted": ["b"]}
    assert [each.in_effect for each in (first, second, third)] == [True, False, False]


def test_what_has_odd_keys_and_is_stored_is_told_all_the_same() -> None:
    options = DeploymentConfig(user_config={"labels": {None: "other", 1: "one"}})
    (release,) = told(records(program("a", options)))
    (deployment,) = json.loads(release.said)["applications"][0]["deployments"]
    assert deployment["user_config"] == {"labels": {"null": "other", "1": "one"}}


def test_without_a_number_it_goes_to_the_config_before() -> None:
    kept = records(config("a"), program("x"), config("b"))
    assert before_present(kept, {}).number == 1


def became(**outcomes: str) -> dict[int, Outcome]:
    return {int(name[1:]): Outcome(status=ReleaseStatus(how)) for name, how in outcomes.items()}


def test_without_a_number_it_passes_over_what_did_not_work_or_says_the_same() -> None:
    kept = records(config("a"), config("b"), config("bad"), config("late"), config("b"))
    outcomes = became(r1="deployed", r2="deployed", r3="failed", r4="replaced", r5="deployed")
    assert before_present(kept, outcomes).number == 1
    # What an automatic rollback went back to is declared, not what failed.
    kept, outcomes = kept[:3], became(r1="deployed", r2="deployed", r3="rolled back")
    declared = {"b": config("b").applications[0]}
    assert before_present(kept, outcomes, declared).number == 1
    # One that failed and stayed is gone back from, to what runs.
    assert before_present(kept, became(r3="failed")).number == 2


def test_without_a_number_and_without_one_that_worked_it_says_why() -> None:
    kept = records(config("a"), config("b"), config("c"), config("b"))
    outcomes = became(r1="failed", r2="deployed", r3="under way")
    with pytest.raises(ReleaseError) as caught:
        before_present(kept, outcomes)
    assert "3 never got there; 2 says what is declared now; 1 failed. `remora history`" in str(
        caught.value
    )


def test_a_second_rollback_goes_further_back() -> None:
    kept = records(config("a"), config("b"), config("c"), config("b", rollback_to=2))
    assert before_present(kept, {}).number == 1


def test_after_a_rollback_the_next_goes_to_what_that_brought_back() -> None:
    kept = records(config("a"), config("bad"), config("a", rollback_to=1), config("worse"))
    assert before_present(kept, {}).number == 1


def test_a_deletion_of_what_is_declared_is_a_release_to_go_back_from_and_to() -> None:
    kept = records(config("a", "b"), ev.DeleteRequested(names=("b",)))
    first, second = told(kept)
    assert (first.in_effect, second.in_effect) == (False, True)
    assert json.loads(second.said) == {"deleted": ["b"], "applications": [{"name": "a"}]}
    assert before_present(kept, {}) == kept[0]
    kept = records(*(each.event for each in kept), config("a", "c"))
    back = again(before_present(kept, {}))
    assert isinstance(back, ev.ConfigSubmitted)
    assert ([app.name for app in back.applications], back.rollback_to) == (["a"], 2)
    kept = records(*(each.event for each in kept), back)
    assert before_present(kept, {}).number == 1


def test_a_deletion_of_what_a_program_took_over_declares_nothing() -> None:
    kept = records(config("a", "b"), program("b"), ev.DeleteRequested(names=("b",)))
    assert [each.in_effect for each in told(kept)] == [True, False, False]


def test_a_named_one_may_be_anything_that_deployed() -> None:
    kept = records(config("a"), program("x"), ev.DeleteRequested(names=("x",)))
    assert to_go_back_to(kept, 2).number == 2
    with pytest.raises(ReleaseError, match="only deleted x"):
        to_go_back_to(kept, 3)
    with pytest.raises(ReleaseError, match=r"no release 9 \(kept: 1 to 3\)"):
        to_go_back_to(kept, 9)


def test_there_may_be_none() -> None:
    with pytest.raises(ReleaseError, match="No config was deployed"):
        before_present([], {})
    with pytest.raises(ReleaseError, match="no config before release 1"):
        before_present(records(config("a")), {})


def test_what_is_asked_for_again_says_where_it_comes_from() -> None:
    made = again(Record(number=7, unix_s=0.0, event=config("a")))
    assert isinstance(made, ev.ConfigSubmitted)
    assert (made.source, made.rollback_to) == ("rollback to 7", 7)
    back = again(Record(number=9, unix_s=0.0, event=config("a", rollback_to=7)))
    assert isinstance(back, ev.ConfigSubmitted)
    assert back.rollback_to == 7
