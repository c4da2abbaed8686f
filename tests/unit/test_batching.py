"""`@batch` on a loop of virtual time: gathering, results, errors, cancellation, tuning, streams."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import pickle
import traceback
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, ClassVar

import cloudpickle
import pytest

from remora.batching import batch as typed_batch
from remora.context import ReplicaContext, ReplicaID, set_replica_context
from remora.errors import RayServeException
from remora.request_context import RequestContext, current
from remora.testing.virtual_time import run
from remora.types import DeploymentID

pytestmark = pytest.mark.virtual_time

#: How decorated functions are typed is the subject of another test.
batch: Any = typed_batch


class Model:
    """Doubles; notes what it was called with and when."""

    def __init__(self, run_s: float = 1.0) -> None:
        self.run_s = run_s
        self.batches: list[list[Any]] = []
        self.started: list[float] = []
        self.cancelled = 0
        self.most = 0
        self.running = 0

    async def work(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.started.append(now_s())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.run_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return [2 * item for item in items]


def now_s() -> float:
    return asyncio.get_running_loop().time() - 1000.0


def batched(model: Model, **options: Any) -> Any:
    async def work(items: list[Any]) -> list[Any]:
        return await model.work(items)

    return batch(**options)(work)


async def together(*calls: Any, return_exceptions: bool = False) -> list[Any]:
    return list(await asyncio.gather(*calls, return_exceptions=return_exceptions))


async def after(delay_s: float, function: Any, item: Any) -> Any:
    await asyncio.sleep(delay_s)
    return await function(item)


# -- gathering ----------------------------------------------------------------------------------


async def test_calls_of_one_moment_run_together_and_each_gets_its_own_answer_in_order() -> None:
    model = Model()
    work = batched(model)
    assert await together(*(work(i) for i in range(25))) == [2 * i for i in range(25)]
    assert model.batches == [list(range(10)), list(range(10, 20)), list(range(20, 25))]


async def test_a_lone_call_on_a_free_model_does_not_wait() -> None:
    model = Model()
    assert await batched(model, batch_wait_timeout_s=100)(1) == 2
    assert model.started == [0.0]


async def test_always_waits_for_the_whole_time_from_the_first_item_on() -> None:
    model = Model()
    work = batched(model, batch_wait_timeout_s=5, wait_policy="always")
    calls = [after(delay, work, delay) for delay in (0, 2, 4.5, 6)]
    await together(*calls)
    assert model.batches == [[0, 2, 4.5], [6]]
    assert model.started == pytest.approx([5, 11])


async def test_a_full_batch_starts_at_once() -> None:
    model = Model()
    work = batched(model, max_batch_size=2, batch_wait_timeout_s=50, wait_policy="always")
    await together(work(1), work(2))
    assert model.started == [0.0]


async def test_no_wait_means_what_is_there() -> None:
    model = Model()
    work = batched(model, batch_wait_timeout_s=0, wait_policy="always")
    await together(work(1), work(2))
    assert model.batches == [[1, 2]]
    assert model.started == [0.0]


async def test_whoever_comes_while_the_model_works_is_in_the_next_batch() -> None:
    model = Model()
    work = batched(model)
    await together(*(after(0.1 * i, work, i) for i in range(5)))
    assert model.batches == [[0], [1, 2, 3, 4]]
    assert model.started == pytest.approx([0, 1])


async def test_callers_who_come_back_together_are_waited_for_once_that_is_known() -> None:
    """Four callers, each back 1 to 4 ms after its answer, and a model that takes 20 ms a batch."""

    model = Model(run_s=0.02)
    work = batched(model)

    async def caller(number: int) -> None:
        for _ in range(60):
            await work(number)
            await asyncio.sleep(0.001 * (number + 1))

    await together(*(caller(number) for number in range(4)))
    # Without waiting it would be one, and then the other three, for ever.
    late = [len(batch) for batch in model.batches[30:60]]
    assert late == [4] * 30


async def test_callers_who_come_back_late_are_not_waited_for() -> None:
    model = Model(run_s=0.02)
    work = batched(model)
    waits: list[float] = []

    async def caller(number: int) -> None:
        for _ in range(30):
            await asyncio.sleep(0.1 + 0.011 * number)
            before = now_s()
            await work(number)
            waits.append(now_s() - before - 0.02)

    await together(caller(0), caller(1))
    # At most the rest of the batch that runs; never the time to wait for others.
    assert max(waits) < 0.02
    assert sorted(waits)[len(waits) // 2] == pytest.approx(0, abs=1e-6)


def test_no_more_are_waited_for_than_the_replica_takes() -> None:
    """All that a replica works on are here: nobody can come, however likely it was."""

    async def main() -> None:
        model = Model(run_s=0.02)
        work = batched(model, max_concurrent_batches=2)

        async def caller(number: int) -> None:
            for _ in range(20):
                await work(number)
                await asyncio.sleep(0.001)

        await together(*(caller(number) for number in range(4)))
        model.started.clear()
        begin = now_s()
        await together(work(0), work(1))
        assert model.started == [begin]

    set_replica_context(ReplicaContext(ReplicaID("r"), DeploymentID("d"), max_ongoing_requests=2))
    try:
        run(main())
    finally:
        set_replica_context(None)


async def test_as_many_batches_run_as_may() -> None:
    model = Model()
    work = batched(model, max_batch_size=1, max_concurrent_batches=3)
    await together(*(work(i) for i in range(7)))
    assert model.most == 3
    assert now_s() == pytest.approx(3)


async def test_items_of_different_keys_never_share_a_batch_and_the_oldest_goes_first() -> None:
    model = Model()
    work = batched(model, key_fn=len)
    items = ["a", "bb", "c", "dd", "eee", "f"]
    assert await together(*(work(i) for i in items)) == [2 * i for i in items]
    assert model.batches == [["a", "c", "f"], ["bb", "dd"], ["eee"]]


async def test_of_two_batches_that_could_start_the_one_that_has_waited_longest_does() -> None:
    model = Model()
    work = batched(model, key_fn=len)
    items = ["-", "bb", "a", "dd", "c"]
    await together(*(after(0.1 * i, work, item) for i, item in enumerate(items)))
    assert model.batches == [["-"], ["bb", "dd"], ["a", "c"]]


@pytest.mark.parametrize("wait_policy", ["adaptive", "always"])
@pytest.mark.parametrize("callers", [5, 9, 40])
async def test_a_bucket_that_is_always_full_keeps_no_other_one_waiting(
    wait_policy: str, callers: int
) -> None:
    model = Model(run_s=0.05)
    work = batched(model, max_batch_size=4, key_fn=len, wait_policy=wait_policy)

    async def again_and_again() -> None:
        while True:
            await work("a")
            await asyncio.sleep(0.001)

    busy = start(*(again_and_again() for _ in range(callers)))
    await asyncio.sleep(1)
    before = len(model.batches)
    assert await asyncio.wait_for(work("bb"), 10) == "bbbb"
    # The calls before it, the batch that ran when it came, and its own.
    assert len(model.batches) - before <= callers / 4 + 2
    for task in busy:
        task.cancel()


async def test_buckets_that_have_waited_for_the_limit_run_without_a_pause_between_them() -> None:
    model = Model()
    work = batched(model, key_fn=len, batch_wait_timeout_s=5, wait_policy="always")
    await together(*(work("x" * n) for n in (1, 2, 3)))
    assert model.started == pytest.approx([5, 6, 7])


async def test_a_batch_is_closed_before_it_gets_too_large_and_what_is_deferred_is_next() -> None:
    model = Model()
    work = batched(model, max_batch_size=10, batch_size_fn=sum)
    await together(*(work(i) for i in (4, 5, 6, 1, 1, 10)))
    assert model.batches == [[4, 5], [6, 1, 1], [10]]


async def test_an_item_larger_than_a_batch_is_refused_to_its_caller_alone() -> None:
    work = batched(Model(), max_batch_size=10, batch_size_fn=sum)
    good, bad = await together(work(3), work(11), return_exceptions=True)
    assert good == 6
    assert isinstance(bad, RuntimeError | RayServeException)
    assert "size of 11, and max_batch_size is 10" in str(bad)


@pytest.mark.parametrize("wrong", [None, "3", float("nan"), -1])
async def test_a_size_that_is_no_number_is_told_to_the_caller(wrong: Any) -> None:
    work = batched(Model(), batch_size_fn=lambda items: wrong if 7 in items else len(items))
    good, bad = await together(work(1), work(7), return_exceptions=True)
    assert good == 2
    assert isinstance(bad, TypeError)
    assert "batch_size_fn" in str(bad)


async def test_a_size_function_that_fails_for_several_items_ends_the_oldest_and_the_rest_go_on() -> (
    None
):
    def size(items: list[int]) -> int:
        if {1, 2} <= set(items):
            raise ValueError("1 and 2 do not go together")
        return len(items)

    work = batched(Model(), batch_size_fn=size)
    first, second, third = await together(work(1), work(2), work(3), return_exceptions=True)
    assert isinstance(first, ValueError)
    assert (second, third) == (4, 6)


async def test_a_size_function_that_fails_for_one_key_ends_no_call_of_another() -> None:
    def size(items: list[str]) -> int:
        if items[0] == "bad" and len(items) > 1:
            raise ValueError("these cannot be measured")
        return len(items)

    work = batched(Model(), batch_size_fn=size, key_fn=lambda item: item)
    results = await together(*map(work, ("ok", "ok", "bad", "bad")), return_exceptions=True)
    assert [type(result) for result in results] == [str, str, ValueError, str]


@pytest.mark.parametrize(
    ("key_fn", "error"),
    [(lambda item: [item], "cannot be hashed"), (lambda item: 1 / item, "zero")],
)
async def test_a_key_that_cannot_be_is_told_to_the_caller(key_fn: Any, error: str) -> None:
    with pytest.raises((TypeError, ZeroDivisionError), match=error):
        await batched(Model(), key_fn=key_fn)(0)


# -- arguments ------------------------------------------------------------------------------------


async def test_every_argument_arrives_as_a_list_and_defaults_stay_what_they_are() -> None:
    seen = []

    @batch
    async def add(xs: list[int], ys: list[int], scale: Any = 100) -> list[int]:
        seen.append((xs, ys, scale))
        scales = scale if isinstance(scale, list) else [scale] * len(xs)
        return [s * (x + y) for x, y, s in zip(xs, ys, scales, strict=True)]

    calls = [add(1, 2), add(3, ys=4), add(ys=6, xs=5), add(7, 8, 2), add(9, 10, scale=3)]
    assert await together(*calls) == [300, 700, 1100, 30, 57]
    assert seen == [([1, 3, 5], [2, 4, 6], 100), ([7, 9], [8, 10], [2, 3])]


async def test_keyword_only_arguments_are_batched_too() -> None:
    @batch
    async def pick(*, name: list[str]) -> list[str]:
        return [each.upper() for each in name]

    assert await together(pick(name="a"), pick(name="b")) == ["A", "B"]


async def test_wrong_arguments_are_told_at_once_and_spoil_no_batch() -> None:
    work = batched(Model())
    results = await together(work(1), work(), work(1, 2), work(other=1), return_exceptions=True)
    assert results[0] == 2
    assert [type(result) for result in results[1:]] == [TypeError] * 3


# -- results and errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([1], "returned 1 results for a batch of 2"),
        ([1, 2, 3], "returned 3 results for a batch of 2"),
        (None, "returned NoneType for a batch of 2"),
        (7, "returned int for a batch of 2"),
        ("ab", "returned str for a batch of 2"),
        ({"a": 1, "b": 2}, "returned dict for a batch of 2"),
        ((i for i in range(2)), "returned generator for a batch of 2"),
    ],
)
async def test_a_result_that_is_no_list_of_that_length_is_told_to_all_and_the_next_batch_runs(
    results: Any, message: str
) -> None:
    answers = [results, [5]]

    @batch
    async def work(items: list[int]) -> Any:
        return answers.pop(0)

    failed = await together(work(1), work(2), return_exceptions=True)
    assert [type(error) for error in failed] == [RayServeException] * 2
    assert all(message in str(error) for error in failed)
    assert await work(3) == 5


class LiesAboutItsLength(list[int]):
    def __len__(self) -> int:
        return 2


class Table:
    """As a data frame: its length is that of its rows, its items are the names of its columns."""

    columns = ("a", "b")

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize("wrong", [LiesAboutItsLength([1]), Table(), types.MappingProxyType({})])
async def test_a_result_that_only_looks_right_is_handed_out_to_nobody(wrong: object) -> None:
    @batch
    async def work(items: list[int]) -> Any:
        return wrong

    failed = await together(work(1), work(2), return_exceptions=True)
    assert [type(error) for error in failed] == [RayServeException] * 2


async def test_what_a_body_raises_reaches_every_caller_of_that_batch_and_no_other() -> None:
    @batch(max_batch_size=2)
    async def work(items: list[int]) -> list[int]:
        if 0 in items:
            raise ZeroDivisionError("no zero")
        return items

    results = await together(work(0), work(1), work(2), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError, ZeroDivisionError, int]


async def test_an_exception_among_the_results_goes_to_its_own_caller() -> None:
    @batch
    async def work(items: list[int]) -> list[int | Exception]:
        return [ValueError(f"{i} is odd") if i % 2 else i for i in items]

    results = await together(*(work(i) for i in range(3)), return_exceptions=True)
    assert results[::2] == [0, 2]
    assert str(results[1]) == "1 is odd"


async def test_a_stop_iteration_among_results_hangs_nobody() -> None:
    @batch
    async def work(items: list[int]) -> Any:
        return [StopIteration(i) for i in items]

    with pytest.raises(RuntimeError, match="StopIteration"):
        await work(1)


async def test_a_tuple_or_array_of_results_will_do() -> None:
    @batch
    async def work(items: list[int]) -> tuple[int, ...]:
        return tuple(items)

    assert await work(1) == 1


# -- cancellation -------------------------------------------------------------------------------


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await together(*tasks, return_exceptions=True)


def start(*calls: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(call) for call in calls]


async def test_whoever_leaves_before_the_batch_is_not_in_it() -> None:
    model = Model()
    work = batched(model)
    first, *others = start(work(0), *[after(0.1, work, i) for i in (1, 2, 3)])
    await asyncio.sleep(0.5)
    await cancel(others[1])
    assert await together(first, others[0], others[2]) == [0, 2, 6]
    assert model.batches == [[0], [1, 3]]


async def test_a_batch_that_everybody_left_is_not_run() -> None:
    model = Model()
    work = batched(model, batch_wait_timeout_s=5, wait_policy="always")
    tasks = start(work(1), work(2))
    await asyncio.sleep(1)
    await cancel(*tasks)
    await asyncio.sleep(100)
    assert model.batches == []


async def test_a_running_batch_is_cancelled_when_its_last_caller_leaves() -> None:
    model = Model(run_s=10)
    work = batched(model)
    one, two = start(work(1), work(2))
    await asyncio.sleep(1)
    await cancel(one)
    await turn()
    assert model.cancelled == 0
    await cancel(two)
    await turn()
    assert model.cancelled == 1
    assert await work(3) == 6


async def test_whoever_leaves_a_running_batch_does_not_disturb_the_others() -> None:
    work = batched(Model())
    one, two = start(work(1), work(2))
    await asyncio.sleep(0.5)
    await cancel(one)
    assert await two == 4


async def test_a_body_that_is_cancelled_from_outside_is_told_to_its_callers() -> None:
    bodies: list[asyncio.Task[Any]] = []

    @batch
    async def work(items: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        bodies.append(task)
        if len(bodies) == 1:
            await asyncio.sleep(100)
        return items

    tasks = start(work(1), work(2))
    await turn()
    bodies[0].cancel()
    results = await together(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [RayServeException] * 2
    assert "cancelled from outside" in str(results[0])
    assert await work(3) == 3


async def test_calls_made_in_an_abandoned_batch_are_cancelled() -> None:
    class Child:
        cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

    child = Child()

    current.set(RequestContext("id"))

    @batch
    async def work(items: list[int]) -> list[int]:
        context = current.get()
        assert context is not None
        context.add_child(child)
        await asyncio.sleep(100)
        return items

    tasks = start(work(1))
    await turn()
    await cancel(*tasks)
    await turn()
    assert child.cancelled


def test_a_loop_that_closes_leaves_nothing_behind_and_the_next_loop_begins_anew() -> None:
    model = Model()
    work = batched(model, batch_wait_timeout_s=5, wait_policy="always")

    async def abandon() -> None:
        start(work(1))
        await turn()

    async def again() -> None:
        assert await work(2) == 4

    run(abandon())
    run(again())
    assert model.batches == [[2]]


def test_a_call_from_another_loop_is_refused_while_the_first_one_runs() -> None:
    async def main() -> None:
        work = batched(Model(run_s=0))
        await work(1)

        async def other() -> None:
            with pytest.raises(RuntimeError, match="event loop of its first call"):
                await work(2)

        await asyncio.to_thread(asyncio.run, other())
        assert await work(3) == 6

    asyncio.run(main())  # Two loops in two threads: real time.


# -- objects ----------------------------------------------------------------------------------


class Doubler:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    @batch(max_batch_size=4)
    async def double(self, items: list[int]) -> list[int]:
        """Double each."""
        self.batches.append(items)
        return [2 * item for item in items]

    @batch
    async def __call__(self, items: list[int]) -> list[int]:
        return [-item for item in items]

    @staticmethod
    @batch
    async def half(items: list[int]) -> list[float]:
        return [item / 2 for item in items]

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


async def test_each_object_has_a_queue_of_its_own_and_options_of_its_own() -> None:
    one, two = Doubler(), Doubler()
    one.double.set_max_batch_size(1)
    assert await together(*(m.double(i) for i in (1, 2) for m in (one, two))) == [
        *[2, 2],
        *[4, 4],
    ]
    assert one.batches == [[1], [2]]
    assert two.batches == [[1, 2]]
    assert one.double._get_max_batch_size() == 1
    assert two.double._get_max_batch_size() == 4


async def test_call_and_static_methods_can_be_batched() -> None:
    model = Doubler()
    assert await together(model(1), model(2)) == [-1, -2]
    assert await together(Doubler.half(1), model.half(2)) == [0.5, 1]


class Sorter:
    seen: ClassVar[list[tuple[object, int]]] = []

    @classmethod
    @batch
    async def of_class(cls, items: list[int]) -> list[int]:
        cls.seen.append((cls, len(items)))
        return items

    @batch
    async def of_object(self, items: list[int]) -> list[int]:
        self.seen.append((self, len(items)))
        return items


async def test_class_methods_can_be_batched() -> None:
    Sorter.seen.clear()
    assert await together(Sorter.of_class(1), Sorter().of_class(2)) == [1, 2]
    # What a class method is from Python 3.13 on: it does not bind what it holds.
    called = types.MethodType(Sorter.__dict__["of_class"].__func__, Sorter)
    assert await together(called(1), called(2)) == [1, 2]
    assert Sorter.seen == [(Sorter, 2), (Sorter, 2)]


async def test_a_method_can_be_called_on_its_class_with_the_object() -> None:
    Sorter.seen.clear()
    sorter = Sorter()
    assert await together(Sorter.of_object(sorter, 1), sorter.of_object(2)) == [1, 2]
    assert Sorter.seen == [(sorter, 2)]


async def test_what_is_set_on_the_method_of_a_class_holds_for_all_its_objects() -> None:
    class Local(Doubler):
        @batch
        async def work(self, items: list[int]) -> list[int]:
            return [len(items)] * len(items)

    before = Local()
    await before.work(1)
    Local.work.set_max_batch_size(2)
    after = Local()
    for model in (before, after):
        assert await together(*(model.work(i) for i in range(4))) == [2, 2, 2, 2]
        assert model.work._get_max_batch_size() == 2
    assert Local.work._get_max_batch_size() == 2
    assert Local.work.statistics()["serve_batches_processed"] == 5
    assert Local.work.statistics()["serve_actual_batch_size"]["sum"] == 9


def test_an_object_that_is_gone_takes_its_queue_along() -> None:
    async def main() -> Callable[[], object]:
        model = Doubler()
        await model.double(1)
        return weakref.ref(model)

    reference = run(main())
    gc.collect()
    assert reference() is None
    assert Doubler.__dict__["double"]._queues == {}


def test_arguments_are_let_go_without_the_garbage_collector() -> None:
    class Array:
        pass

    async def main() -> None:
        @batch
        async def work(items: list[Array]) -> list[int]:
            return [0 for _ in items]

        array = Array()
        reference = weakref.ref(array)
        await work(array)
        await turn()
        del array
        assert reference() is None

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


async def test_a_class_without_weak_references_is_told_what_to_do() -> None:
    class Slots:
        __slots__ = ()

        @batch
        async def work(self, items: list[int]) -> list[int]:
            return items

    with pytest.raises(TypeError, match="__weakref__"):
        await Slots().work(1)


def test_looks_like_the_function_that_it_was_made_of() -> None:
    model = Doubler()
    assert model.double.__name__ == "double"
    assert model.double.__doc__ == "Double each."
    assert str(inspect.signature(model.double)) == "(items: 'list[int]') -> 'list[int]'"
    assert str(inspect.signature(Doubler.double)) == "(self, items: 'list[int]') -> 'list[int]'"


async def test_a_batched_function_travels_without_its_queue() -> None:
    work = cloudpickle.loads(cloudpickle.dumps(batched(Model(), max_batch_size=3)))
    assert await work(2) == 4
    assert work._get_max_batch_size() == 3
    copy = pickle.loads(cloudpickle.dumps(work))
    assert copy is not work
    model = Doubler()
    await model.double(1)
    assert pickle.loads(pickle.dumps(model)).batches == [[1]]


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": -1}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
        ({"max_batch_size": "3"}, TypeError),
        ({"max_batch_size": True}, TypeError),
        ({"batch_wait_timeout_s": -0.1}, ValueError),
        ({"batch_wait_timeout_s": float("nan")}, ValueError),
        ({"batch_wait_timeout_s": "1"}, TypeError),
        ({"max_concurrent_batches": 0}, ValueError),
        ({"max_concurrent_batches": 1.5}, TypeError),
        ({"batch_size_fn": 3}, TypeError),
        ({"key_fn": 3}, TypeError),
        ({"wait_policy": "never"}, ValueError),
    ],
)
def test_values_that_cannot_be_right_are_refused_by_name(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        batch(**options)


def test_a_float_that_is_a_whole_number_is_one() -> None:
    assert batched(Model(), max_batch_size=3.0)._get_max_batch_size() == 3


def test_defaults_are_ray_serves() -> None:
    work = batched(Model())
    assert work._get_max_batch_size() == 10
    assert work._get_batch_wait_timeout_s() == 0.01
    assert work._queue().options.max_concurrent_batches == 1


def test_only_coroutine_functions_can_be_batched() -> None:
    def plain(items: list[int]) -> list[int]:
        return items

    for wrong in (plain, 3, staticmethod(plain)):
        with pytest.raises(TypeError, match="async def"):
            batch(wrong)


async def test_tuning_holds_from_the_next_batch_on() -> None:
    model = Model()
    work = batched(model, batch_wait_timeout_s=50, wait_policy="always")
    tasks = start(*(work(i) for i in range(5)))
    await asyncio.sleep(1)
    work.set_max_batch_size(2)
    await asyncio.sleep(2.5)
    work.set_batch_wait_timeout_s(3)
    await together(*tasks)
    assert model.batches == [[0, 1], [2, 3], [4]]
    # The model was free for 1 s before the others took it, and is again from 3 s on.
    assert model.started == pytest.approx([1, 2, 5])
    with pytest.raises(ValueError, match="max_batch_size"):
        work.set_max_batch_size(0)
    with pytest.raises(ValueError, match="batch_wait_timeout_s"):
        work.set_batch_wait_timeout_s(-1)


def test_batches_that_cannot_fill_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        work = batched(Model(), max_batch_size=4, max_concurrent_batches=2)
        await work(1)
        await work(2)

    for limit, warnings in ((8, 0), (7, 1)):
        context = ReplicaContext(ReplicaID("r"), DeploymentID("d"), max_ongoing_requests=limit)
        set_replica_context(context)
        try:
            with caplog.at_level(logging.WARNING, "remora.batching"):
                run(main())
        finally:
            set_replica_context(None)
        assert len(caplog.records) == warnings
    assert "max_batch_size=4 x max_concurrent_batches=2" in caplog.text
    assert "max_ongoing_requests=7" in caplog.text


async def test_statistics_count_batches_sizes_and_waits() -> None:
    model = Model()
    work = batched(model, max_batch_size=4, batch_wait_timeout_s=0.5, wait_policy="always")
    tasks = start(*(work(i) for i in range(6)))
    await turn()
    assert work.statistics()["serve_batch_queue_length"] == 2
    await together(*tasks)
    await turn()
    seen = work.statistics()
    assert seen["serve_batches_processed"] == 2
    assert seen["serve_actual_batch_size"]["sum"] == 6
    assert seen["serve_actual_batch_size"]["buckets"][2] == 1
    assert seen["serve_batch_utilization_percent"]["sum"] == 150
    assert seen["serve_batch_wait_time_ms"]["sum"] == pytest.approx(1500)
    assert seen["serve_batch_execution_time_ms"]["sum"] == pytest.approx(2000)
    assert seen["serve_batch_queue_length"] == 0


# -- the request --------------------------------------------------------------------------------


async def test_a_body_knows_the_model_and_no_request_and_runs_one_model_at_a_time() -> None:
    seen: list[tuple[list[int], RequestContext | None]] = []

    @batch
    async def work(items: list[int]) -> list[int]:
        seen.append((items, current.get()))
        return items

    async def call(item: int, model: str) -> Any:
        current.set(
            RequestContext(
                f"id-{item}",
                "app",
                "deployment",
                "replica",
                multiplexed_model_id=model,
                session_id="s",
                trace_context=f"trace-{item}",
            )
        )
        answer = await work(item)
        context = current.get()
        assert context is not None
        assert context.request_id == f"id-{item}"
        return answer

    await together(*(call(i, "ab"[i % 2]) for i in range(4)))
    assert [items for items, _ in seen] == [[0, 2], [1, 3]]
    for (items, context), model in zip(seen, "ab", strict=True):
        assert context is not None
        assert (context.request_id, context.session_id, context.route) == ("", "", "")
        assert context.multiplexed_model_id == model
        assert context.trace_context == f"trace-{items[0]}"
        assert context.deployment == "deployment"


# -- streams ------------------------------------------------------------------------------------


class Counter:
    """Counts up from each item, `steps` times."""

    def __init__(self, steps: int = 3) -> None:
        self.steps = steps
        self.batches: list[list[int]] = []
        self.yielded = 0
        self.closed = 0

    @batch(max_batch_size=3)
    async def count(self, items: list[int]) -> AsyncIterator[Sequence[Any]]:
        self.batches.append(items)
        try:
            for step in range(self.steps):
                self.yielded += 1
                yield [item + step for item in items]
                await asyncio.sleep(1)
        finally:
            self.closed += 1


async def read(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_each_caller_reads_its_own_stream_as_it_is_produced() -> None:
    model = Counter()
    arrived: list[float] = []

    async def reader() -> list[int]:
        got = []
        async for item in model.count(10):
            arrived.append(now_s())
            got.append(item)
        return got

    got = await together(reader(), *(read(model.count(i)) for i in (20, 30, 40)))
    assert got == [[10, 11, 12], [20, 21, 22], [30, 31, 32], [40, 41, 42]]
    assert model.batches == [[10, 20, 30], [40]]
    assert arrived == pytest.approx([0, 1, 2])


@pytest.mark.parametrize(
    "marker", [StopIteration, StopAsyncIteration, StopIteration(), StopAsyncIteration()]
)
async def test_a_stop_marker_ends_the_stream_of_its_caller_alone(marker: Any) -> None:
    @batch
    async def count(items: list[int]) -> AsyncIterator[list[Any]]:
        for step in range(3):
            yield [marker if step >= item else step for item in items]

    assert await together(*(read(count(i)) for i in (1, 3, 0))) == [[0], [0, 1, 2], []]


async def test_an_exception_in_a_slot_ends_that_stream_after_what_came_before() -> None:
    @batch
    async def count(items: list[int]) -> AsyncIterator[list[Any]]:
        yield items
        yield [ValueError("odd") if item % 2 else item for item in items]

    async def failing() -> list[int]:
        items = count(1)
        got = [await anext(items)]
        with pytest.raises(ValueError, match="odd"):
            await anext(items)
        return got

    assert await together(failing(), read(count(2))) == [[1], [2, 2]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [([1], "yielded 1 results for a batch of 2"), (None, "yielded NoneType for a batch of 2")],
)
async def test_a_yield_of_the_wrong_length_ends_all_streams_with_an_error(
    wrong: Any, message: str
) -> None:
    closed = []

    @batch
    async def count(items: list[int]) -> AsyncIterator[Any]:
        try:
            yield items
            yield wrong
        finally:
            closed.append(True)

    results = await together(read(count(1)), read(count(2)), return_exceptions=True)
    assert [type(result) for result in results] == [RayServeException] * 2
    assert message in str(results[0])
    assert closed == [True]


async def test_a_body_that_raises_ends_all_streams_with_it() -> None:
    @batch
    async def count(items: list[int]) -> AsyncIterator[list[int]]:
        yield items
        raise ZeroDivisionError

    results = await together(read(count(1)), read(count(2)), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2


async def test_the_readers_of_a_batch_do_not_add_to_each_others_traceback() -> None:
    @batch
    async def count(items: list[int]) -> AsyncIterator[list[int]]:
        yield items
        raise ZeroDivisionError

    results = await together(*(read(count(i)) for i in range(8)), return_exceptions=True)
    assert len({id(result) for result in results}) == 1
    assert len(traceback.extract_tb(results[0].__traceback__)) < 8


async def test_a_stream_that_is_not_read_fails_alone() -> None:
    """Of two streams of one batch that are read one after the other, the first is complete."""

    @batch
    async def count(items: list[int]) -> AsyncIterator[list[int]]:
        for step in range(1000):
            yield [step] * len(items)

    one, two = count(1), count(2)
    await together(anext(one), anext(two))
    assert await read(one) == list(range(1, 1000))
    assert now_s() == pytest.approx(30)
    with pytest.raises(RayServeException, match="not read for 30 s while 256 items"):
        await read(two)


async def test_a_generator_that_ends_at_once_gives_empty_streams() -> None:
    @batch
    async def count(items: list[int]) -> AsyncIterator[list[int]]:
        if len(items) > 100:
            yield items

    assert await together(read(count(1)), read(count(2))) == [[], []]


async def test_a_reader_who_leaves_disturbs_nobody_and_the_last_one_stops_the_body() -> None:
    model = Counter(steps=100)
    one, two = start(read(model.count(1)), read(model.count(2)))
    await asyncio.sleep(3.5)
    await cancel(one)
    await asyncio.sleep(3)
    assert model.closed == 0
    await cancel(two)
    await turn()
    assert model.closed == 1
    assert model.yielded == 7


async def test_a_reader_far_behind_makes_the_body_wait_instead_of_filling_memory() -> None:
    yielded = 0

    @batch
    async def count(items: list[int]) -> AsyncIterator[list[int]]:
        nonlocal yielded
        for step in range(10_000):
            yielded += 1
            yield [step for _ in items]

    items = count(1)
    assert await anext(items) == 0
    await asyncio.sleep(1)
    assert yielded < 300
    assert [item async for item in items] == list(range(1, 10_000))


def test_an_unknown_option_names_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match=r"'max_batch_sise'\. Did you mean 'max_batch_size'"):
        typed_batch(max_batch_sise=3)  # type: ignore[call-overload]
