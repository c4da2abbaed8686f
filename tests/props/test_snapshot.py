from __future__ import annotations

from hypothesis import given
from tests.props import strategies as own

from remora.core.snapshot import Snapshot, SnapshotDiff, diff, patch
from remora.wire.codec import pack, unpack


@given(own.snapshots, own.snapshots)
def test_a_patch_leads_from_one_to_the_other(old: Snapshot, new: Snapshot) -> None:
    kept = pack(old)
    assert patch(old, diff(old, new)) == new
    assert pack(old) == kept


@given(own.snapshots, own.snapshots)
def test_the_first_message_forgets_whatever_was_known(old: Snapshot, new: Snapshot) -> None:
    assert diff(None, new).reset
    assert patch(old, diff(None, new)) == new


@given(own.snapshots)
def test_no_change_is_an_empty_difference(snapshot: Snapshot) -> None:
    unchanged = SnapshotDiff(snapshot.version, draining=snapshot.draining)
    assert diff(snapshot, snapshot) == unchanged


@given(own.snapshots, own.snapshots)
def test_a_difference_has_only_what_differs(old: Snapshot, new: Snapshot) -> None:
    change = diff(old, new)
    assert all(old.apps.get(name) != route for name, route in change.apps.items())
    assert not set(change.gone_apps) & set(new.apps)
    assert all(old.deployments.get(key) != route for key, route in change.deployments.items())
    assert not set(change.gone_deployments) & set(new.deployments)


@given(own.snapshots, own.snapshots)
def test_it_survives_the_wire(old: Snapshot, new: Snapshot) -> None:
    change = diff(old, new)
    assert unpack(pack(change), SnapshotDiff) == change
