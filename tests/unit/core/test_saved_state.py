from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.unit.core.test_state import replica, state

from remora.core.replica_state import ReplicaState
from remora.core.saved_state import (
    HEADER,
    SCHEMA_VERSION,
    StateUnreadableError,
    decode,
    encode,
    read,
)
from remora.core.state import Activity
from remora.types import ReplicaID

#: Written by versions of before, in the middle of a deploy.
SAVED = Path(__file__).parent / "saved"


def test_saving_keeps_the_durable_part_only() -> None:
    before = state(replica(state=ReplicaState.RUNNING, address="unix:/x", pid=7))
    before.activity[ReplicaID("a/d#1")] = Activity(call="check_health")
    before.last_event_id = 9
    before.target_capacity = 50.0
    after = decode(encode(before))
    assert after.applications == before.applications
    assert (after.last_event_id, after.target_capacity) == (9, 50.0)
    assert after.activity == {}
    assert encode(after, with_event_id=False) == encode(before, with_event_id=False)


def test_each_application_and_each_deployment_is_a_piece() -> None:
    assert set(encode(state())) == {"state", "app/a", "deployment/a#d"}


def test_what_schema_1_wrote_is_read_and_written_in_the_present_form() -> None:
    found = decode({HEADER: (SAVED / "schema-1.msgpack").read_bytes()})
    shop = found.applications["shop"]
    assert (shop.route_prefix, shop.revision, found.salt) == ("/shop", 2, "ab-")
    front = shop.deployments["Front"]
    assert front.target.code_version == "2"
    assert front.previous is not None
    assert front.target.config.user_config == {"k": 1}
    running = [each for each in front.replicas.values() if each.state is ReplicaState.RUNNING]
    assert [each.pid for each in running] == [100, 100]
    assert all(each.history for each in running)
    again = encode(found)
    assert msgspec.msgpack.decode(again[HEADER])["schema"] == SCHEMA_VERSION
    assert decode(again) == found


def test_every_schema_of_before_has_a_saved_example() -> None:
    examples = {int(path.stem.rpartition("-")[2]) for path in SAVED.glob("schema-*.msgpack")}
    assert examples == set(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("key", ["state", "app/a", "deployment/a#d"])
@pytest.mark.parametrize("data", [b"", b"\xc1", b"rubbish"])
def test_a_damaged_piece_is_told_and_the_others_are_read(key: str, data: bytes) -> None:
    pieces = {**encode(state(replica())), key: data}
    reading = read(pieces)
    assert "damaged" in reading.unreadable[key]
    if key == "state":
        assert "d" in reading.state.applications["a"].deployments
    with pytest.raises(StateUnreadableError, match="damaged"):
        decode(pieces)


def test_deployments_of_an_application_that_is_lost_are_unreadable() -> None:
    pieces = encode(state())
    del pieces["app/a"]
    reading = read(pieces)
    assert reading.state.applications == {}
    assert "application 'a' cannot be read" in reading.unreadable["deployment/a#d"]


def test_a_state_without_its_header_is_read_and_told() -> None:
    pieces = encode(state())
    del pieces["state"]
    reading = read(pieces)
    assert set(reading.state.applications) == {"a"}
    assert reading.unreadable == {"state": "it is missing"}


def test_the_state_of_a_newer_version_is_left_whole() -> None:
    pieces = {**encode(state()), HEADER: msgspec.msgpack.encode({"schema": 99})}
    reading = read(pieces)
    assert set(reading.unreadable) == set(pieces)
    assert "has schema 99" in reading.unreadable[HEADER]


def test_a_state_that_contradicts_itself_is_refused() -> None:
    wrong = state(replica(1, rank=0), replica(2, rank=0))
    with pytest.raises(StateUnreadableError, match="rank 0 of d is doubled"):
        decode(encode(wrong))
