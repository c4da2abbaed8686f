from __future__ import annotations

import pytest

from remora.control.checkpoint import KEPT_LOG_ENTRIES, CodeStore, EventLog, Section
from remora.core import events as ev
from remora.errors import EngineError
from remora.testing import FakeEngine


async def test_equal_code_is_kept_once_and_swept_when_unneeded() -> None:
    engine = FakeEngine()
    code = CodeStore(Section(engine))
    one, same, other = await code.put(b"1"), await code.put(b"1"), await code.put(b"2")
    assert one == same != other
    await code.sweep(set(), set())
    assert set(engine.store) == {one, other}, "requests that are not decided hold it"
    code.unpin([one, same, other])
    await code.sweep({other}, set())
    assert set(engine.store) == {other}
    fresh = CodeStore(Section(engine))
    await fresh.load()
    assert await fresh.get(other) == b"2"
    with pytest.raises(EngineError, match="missing from the store"):
        await fresh.get(one)
    await fresh.sweep(set(), set())
    assert engine.store == {}


async def test_code_that_cannot_be_written_holds_nothing() -> None:
    engine = FakeEngine()
    code = CodeStore(Section(engine))
    engine.fail_puts = True
    with pytest.raises(EngineError):
        await code.put(b"1")
    engine.fail_puts = False
    key = await code.put(b"1")
    code.unpin([key])
    await code.sweep(set(), set())
    assert engine.store == {}


async def test_the_log_keeps_the_last_thousands_in_order_over_restarts() -> None:
    engine = FakeEngine()
    number = 0
    log = EventLog(Section(engine))
    for _ in range(3):
        log = EventLog(Section(engine))
        await log.load()
        for _ in range(2500):
            number += 1
            log.append(ev.LogEntry(float(number), (ev.NodeLost(node_id="n", event_id=number),)))  # type: ignore[arg-type]
            if log.is_due:
                await log.flush()
        await log.flush()
    entries = await log.read()
    numbers = [int(entry.now_s) for entry in entries]
    assert numbers == list(range(numbers[0], number + 1))
    assert 2000 <= len(numbers) <= KEPT_LOG_ENTRIES + 1000
    assert entries[-1].events[0].event_id == number
