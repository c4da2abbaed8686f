"""The state in the store: written in pieces, and yet all of a change or nothing of it."""

from __future__ import annotations

import msgspec
import pytest

from remora.control.checkpoint import Section
from remora.control.state_file import JOURNAL, StateFile
from remora.core.reconcile import Step
from remora.core.saved_state import encode
from remora.core.state import Application, ControllerState
from remora.errors import EngineError
from remora.testing import FakeEngine


class KilledError(Exception):
    """The process ends here."""


class CountingEngine(FakeEngine):
    """A store that notes writes, and whose writer is killed before one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.kill_at: int | None = None

    def _write(self, key: str) -> None:
        if self.kill_at is not None and len(self.writes) >= self.kill_at:
            raise KilledError(key)
        self.writes.append(key)

    async def put(self, key: str, value: bytes) -> None:
        self._write(key)
        await super().put(key, value)

    async def delete(self, key: str) -> None:
        self._write(key)
        await super().delete(key)


def state(next_replica: int, **prefixes: str) -> ControllerState:
    applications = {
        name: Application(
            name=name, route_prefix=prefix, ingress="d", revision=1, last_deployed_unix_s=1.0
        )
        for name, prefix in prefixes.items()
    }
    return ControllerState(applications=applications, salt="s", next_replica=next_replica)


async def save(file: StateFile, state: ControllerState, *more: str) -> None:
    file.note(Step(state, (), None, touched_apps=frozenset({*state.applications, *more})))
    await file.save(state)


async def load(engine: FakeEngine) -> ControllerState:
    return (await StateFile(Section(engine)).load(0.0)).state


async def test_only_what_changed_is_written() -> None:
    engine = CountingEngine()
    file = StateFile(Section(engine))
    await save(file, state(1, a="/a", b="/b"))
    engine.writes.clear()
    same = state(1, a="/a", b="/b")
    same.last_event_id = 5
    await save(file, same)
    assert engine.writes == []
    await save(file, state(1, a="/a", b="/c"))
    assert engine.writes == ["app/b"]
    engine.writes.clear()
    after = state(2, a="/a", b="/c")
    after.last_event_id = 7
    await save(file, after)
    assert engine.writes == ["state"]
    assert (await load(engine)).last_event_id == 7


async def test_whoever_is_killed_while_writing_leaves_all_of_a_change_or_nothing() -> None:
    # Two applications change places, one goes, one comes: any mixture would be wrong.
    before, after = state(1, a="/x", b="/y", gone="/g"), state(2, a="/y", b="/x", new="/g")
    for kill_at in range(20):
        engine = CountingEngine()
        file = StateFile(Section(engine))
        await save(file, before)
        engine.writes.clear()
        engine.kill_at = kill_at
        try:
            await save(file, after, "gone")
            survived = True
        except KilledError:
            survived = False
        engine.kill_at = None
        found = encode(await load(engine))
        assert found in (encode(before), encode(after)), kill_at
        if kill_at > 0:
            assert found == encode(after)
        assert JOURNAL not in engine.store
        if survived:
            return
    raise AssertionError("it never ended by itself")


async def test_a_failed_save_is_tried_again_with_all_that_changed_since() -> None:
    engine = FakeEngine()
    file = StateFile(Section(engine))
    await save(file, state(1, a="/a", b="/b"))
    engine.fail_puts = True
    with pytest.raises(EngineError):
        await save(file, state(2, a="/c", b="/b"))
    engine.fail_puts = False
    # The step that comes next has touched something else.
    last = state(2, a="/c", b="/d")
    file.note(Step(last, (), None, touched_apps=frozenset({"b"})))
    await file.save(last)
    assert encode(await load(engine)) == encode(last)


async def test_a_disk_that_fills_up_in_the_middle_loses_nothing() -> None:
    class FillingEngine(FakeEngine):
        left = 100

        async def put(self, key: str, value: bytes) -> None:
            self.left -= 1
            if self.left < 0:
                raise EngineError("no space left on device")
            await super().put(key, value)

    engine = FillingEngine()
    file = StateFile(Section(engine))
    await save(file, state(1, a="/a", b="/b"))
    engine.left = 2
    # The journal is there, the pieces are not: that is saved.
    middle = state(2, a="/c", b="/d")
    await save(file, middle)
    assert encode(await load(_copy(engine))) == encode(middle)
    engine.left = 100
    last = state(2, a="/c", b="/e")
    await save(file, last)
    assert JOURNAL not in engine.store
    assert encode(await load(engine)) == encode(last)


def _copy(engine: FakeEngine) -> FakeEngine:
    other = FakeEngine()
    other.store = dict(engine.store)
    return other


async def test_a_damaged_journal_is_kept_aside(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    await save(StateFile(Section(engine)), state(1, a="/a"))
    engine.store[JOURNAL] = b"rubbish"
    assert set((await load(engine)).applications) == {"a"}
    assert engine.store["unreadable-0/state-journal"] == b"rubbish"
    assert "kept below 'unreadable-0/'" in caplog.text


async def test_what_an_older_version_wrote_is_written_anew_as_a_whole() -> None:
    engine = FakeEngine()
    old = msgspec.msgpack.encode(
        {
            "schema": 1,
            "applications": {"a": state(1, a="/a").applications["a"]},
            "shutting_down": False,
            "salt": "s",
            "next_replica": 3,
            "snapshot_version": 4,
            "last_event_id": 5,
        }
    )
    engine.store["state"] = old
    file = StateFile(Section(engine))
    loaded = await file.load(0.0)
    assert loaded.is_whole
    assert engine.store == {"state": old}, "reading alone changes nothing"
    await file.save(loaded.state)
    assert set(engine.store) == {"state", "app/a"}
    assert engine.store["state"] != old
    assert encode(await load(engine)) == encode(loaded.state)
