"""`@multiplexed` on a loop of virtual time: loads, unloads, waiting, failing, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import pickle
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import cloudpickle
import pytest

from remora import get_multiplexed_model_id, multiplexed
from remora.context import ReplicaContext, ReplicaID, set_replica_context
from remora.destructors import destroy
from remora.errors import ConfigError
from remora.models.loader import ModelLoader
from remora.request_context import RequestContext, current
from remora.types import DeploymentID

T = TypeVar("T")
LOG: list[str] = []


@pytest.fixture(autouse=True)
def replica() -> Iterator[ReplicaContext]:
    global LOG
    LOG = []  # a new one: models of earlier tests may end at any time
    context = ReplicaContext(ReplicaID("default#App#r1"), DeploymentID("App"))
    set_replica_context(context)
    yield context
    set_replica_context(None)


class Model:
    def __init__(self, name: str) -> None:
        self.name = name
        self.log = LOG

    def __del__(self) -> None:
        self.log.append(f"del {self.name}")


class App:
    """A deployment whose loads take a second."""

    @multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str) -> Model:
        LOG.append(f"load {model_id}")
        await asyncio.sleep(1)
        if model_id.startswith("bad"):
            raise OSError(f"no file for {model_id}")
        return Model(model_id)


class Light:
    """A deployment with room for one model, whose end takes no thread."""

    @multiplexed(max_num_models_per_replica=1)
    async def get_model(self, model_id: str) -> str:
        LOG.append(f"load {model_id}")
        await asyncio.sleep(1)
        return model_id


async def keep(loader: ModelLoader[str], model_id: str, for_s: float = 0.0) -> None:
    """Work with a model for a while."""
    assert await loader(model_id) == model_id
    await asyncio.sleep(for_s)


def request(work: Callable[[], Awaitable[T]], model_id: str = "") -> asyncio.Task[T]:
    """Work on a request, as a replica does."""

    async def run() -> T:
        context = RequestContext("r", "default", "App", "default#App#r1", "/", model_id)
        context.task = asyncio.current_task()
        current.set(context)
        return await work()

    return asyncio.create_task(run())


def use(loader: ModelLoader[Model], model_id: str, for_s: float = 0.0) -> asyncio.Task[str]:
    """A request that works with a model for a while."""

    async def work() -> str:
        name = (await loader(model_id)).name
        await asyncio.sleep(for_s)
        LOG.append(f"used {model_id}")
        return name

    return request(work, model_id)


# -- loading, keeping, unloading -------------------------------------------------------------------


@pytest.mark.virtual_time
async def test_a_model_is_loaded_once_and_then_kept() -> None:
    app = App()
    assert [await use(app.get_model, "a") for _ in range(3)] == ["a"] * 3
    assert LOG == ["load a", "used a", "used a", "used a"]
    assert app.get_model.loaded() == ["a"]


async def test_the_least_recently_asked_for_is_unloaded_before_the_next_one_loads() -> None:
    class Quick:
        @multiplexed(max_num_models_per_replica=2)
        async def get_model(self, model_id: str) -> Model:
            LOG.append(f"load {model_id}")
            return Model(model_id)

    app = Quick()
    for model_id in ("a", "b", "a", "c"):
        await use(app.get_model, model_id)
    assert [line for line in LOG if "used" not in line] == ["load a", "load b", "del b", "load c"]
    assert app.get_model.loaded() == ["a", "c"]


async def test_a_model_is_told_once_that_it_ends() -> None:
    class One:
        @multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> Model:
            return Model(model_id)

    app = One()
    for model_id in "abcd":
        await use(app.get_model, model_id)
    gc.collect()
    assert [line for line in LOG if "del" in line] == ["del a", "del b", "del c"]


async def test_an_async_del_is_awaited_and_one_that_raises_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Slow:
        async def __del__(self) -> None:
            await asyncio.sleep(0)
            LOG.append("slow end")

    class Broken:
        def __del__(self) -> None:
            raise OSError("busy")

    made = {"slow": Slow, "broken": Broken, "last": Model}

    @multiplexed(max_num_models_per_replica=1)
    async def load(model_id: str) -> Any:
        return Model("last") if model_id == "last" else made[model_id]()

    for model_id in made:
        await request(lambda model_id=model_id: load(model_id))  # type: ignore[misc]
    assert LOG == ["slow end"]
    assert "Model 'broken': __del__ failed" in caplog.text
    assert "OSError: busy" in caplog.text
    assert load.loaded() == ["last"]


async def test_the_end_of_a_replica_unloads_every_model(replica: ReplicaContext) -> None:
    class Quick:
        @multiplexed
        async def get_model(self, model_id: str) -> Model:
            return Model(model_id)

    app = Quick()
    await use(app.get_model, "a")
    await use(app.get_model, "b")
    await replica.held_models.close()
    assert sorted(line for line in LOG if "del" in line) == ["del a", "del b"]
    with pytest.raises(RuntimeError, match="this replica has stopped"):
        await app.get_model("a")


async def test_a_function_serves_the_next_replica_of_its_process(replica: ReplicaContext) -> None:
    @multiplexed(preload=["x"])
    async def load(model_id: str) -> Model:
        return Model(model_id)

    await load("a")
    await replica.held_models.close()
    assert sorted(LOG) == ["del a", "del x"]
    set_replica_context(ReplicaContext(ReplicaID("default#App#r2"), DeploymentID("App")))
    await load("b")
    assert set(load.loaded()) == {"x", "b"}


# -- several at once -------------------------------------------------------------------------------


@pytest.mark.virtual_time
async def test_requests_for_a_missing_model_share_one_load() -> None:
    app = App()
    assert await asyncio.gather(*(use(app.get_model, "a") for _ in range(5))) == ["a"] * 5
    assert LOG.count("load a") == 1


@pytest.mark.virtual_time
async def test_one_load_at_a_time_unless_more_are_allowed() -> None:
    async def load(model_id: str) -> Model:
        await asyncio.sleep(1)
        return Model(model_id)

    loop = asyncio.get_running_loop()
    took = []
    for loader in (multiplexed(load), multiplexed(max_concurrent_loads=3)(load)):
        began = loop.time()
        await asyncio.gather(*(use(loader, model_id) for model_id in "abc"))
        took.append(round(loop.time() - began))
    assert took == [3, 1]


@pytest.mark.virtual_time
async def test_a_hit_does_not_wait_for_a_load() -> None:
    app = App()
    await use(app.get_model, "a")
    loading = use(app.get_model, "b")
    await asyncio.sleep(0.1)
    began = asyncio.get_running_loop().time()
    await use(app.get_model, "a")
    assert asyncio.get_running_loop().time() == began
    assert not loading.done()
    await loading


async def test_a_model_in_use_is_not_unloaded_until_its_request_ends() -> None:
    class One:
        @multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> Model:
            LOG.append(f"load {model_id}")
            return Model(model_id)

    app = One()
    gate = asyncio.Event()

    async def hold() -> None:
        await app.get_model("a")
        await gate.wait()
        LOG.append("done a")

    held = request(hold)
    waiting = [use(app.get_model, "b"), use(app.get_model, "c")]
    for _ in range(5):
        await asyncio.sleep(0)
    assert LOG == ["load a"]
    assert app.get_model.held == ["a", "b", "c"]
    gate.set()
    await asyncio.gather(held, *waiting)
    assert [
        *("load a", "done a", "del a"),
        *("load b", "used b", "del b"),
        *("load c", "used c"),
    ] == LOG


async def test_a_request_that_asks_for_more_models_than_fit_gets_on() -> None:
    class One:
        @multiplexed(max_num_models_per_replica=1)
        async def get_model(self, model_id: str) -> str:
            return f"model {model_id}"

    app = One()

    async def both() -> list[str]:
        return [await app.get_model("a"), await app.get_model("b")]

    assert await request(both) == ["model a", "model b"]
    assert app.get_model.loaded() == ["b"]


async def test_each_multiplexed_method_has_models_of_its_own(replica: ReplicaContext) -> None:
    told: list[list[str]] = []
    replica.held_models.tell = told.append

    class Two:
        @multiplexed(max_num_models_per_replica=1)
        async def get_base(self, model_id: str) -> str:
            return f"base {model_id}"

        @multiplexed
        async def get_adapter(self, model_id: str) -> str:
            return f"adapter {model_id}"

    app, other = Two(), Two()
    assert await app.get_base("m") == "base m"
    assert await app.get_adapter("m") == "adapter m"
    assert await app.get_adapter("n") == "adapter n"
    assert app.get_base.loaded() == ["m"]
    assert other.get_base.loaded() == []
    assert set(told[-1]) == {"m", "n"}


async def test_methods_of_one_name_have_loaders_of_their_own() -> None:
    def make(prefix: str) -> Any:
        @multiplexed
        async def get(self: object, model_id: str) -> str:
            return prefix + model_id

        return get

    class Two:
        one, two = make("1"), make("2")

    both = Two()
    assert await request(lambda: both.one("x")) == "1x"
    assert await request(lambda: both.two("x")) == "2x"


async def test_an_object_that_is_here_under_two_ids_ends_with_the_second() -> None:
    shared = Model("shared")

    class Same:
        @multiplexed(max_num_models_per_replica=2)
        async def get_model(self, model_id: str) -> Model:
            return shared if model_id in "ab" else Model(model_id)

    loader = Same().get_model
    for model_id in ("a", "b", "c"):
        await use(loader, model_id)
    assert [line for line in LOG if "del" in line] == []
    await use(loader, "d")
    assert [line for line in LOG if "del" in line] == ["del shared"]
    await destroy(shared)
    assert [line for line in LOG if "del" in line] == ["del shared"]


async def test_a_subclass_can_build_on_the_loader_of_its_parent() -> None:
    class Parent:
        @multiplexed
        async def get_model(self, model_id: str) -> str:
            return f"parent {model_id}"

    class Child(Parent):
        @multiplexed
        async def get_model(self, model_id: str) -> str:
            return f"child of {await super().get_model(model_id)}"

    assert await Child().get_model("a") == "child of parent a"


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.virtual_time
async def test_a_failed_load_goes_to_all_who_wait_and_is_tried_again_by_the_next() -> None:
    app = App()
    results = await asyncio.gather(
        *(use(app.get_model, "bad") for _ in range(3)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["no file for bad"] * 3
    with pytest.raises(OSError, match="no file"):
        await use(app.get_model, "bad")
    assert LOG.count("load bad") == 2
    assert app.get_model.loaded() == []


@pytest.mark.virtual_time
async def test_one_who_leaves_does_not_end_the_load_of_the_others() -> None:
    app = App()
    first, second = use(app.get_model, "a"), use(app.get_model, "a")
    await asyncio.sleep(0.5)
    first.cancel()
    assert await second == "a"
    assert LOG.count("load a") == 1
    assert first.cancelled()


@pytest.mark.virtual_time
async def test_a_load_is_cancelled_when_all_who_wait_have_left() -> None:
    ended: list[str] = []

    @multiplexed
    async def load(model_id: str) -> Model:
        try:
            await asyncio.sleep(3600)  # it hangs
        except asyncio.CancelledError:
            ended.append(model_id)
            raise
        return Model(model_id)

    waiting = [use(load, "a"), use(load, "a")]
    await asyncio.sleep(1)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await asyncio.sleep(0)
    assert ended == ["a"]
    assert load.held == []


@pytest.mark.virtual_time
async def test_a_loader_that_hangs_holds_up_others_only_until_its_requests_give_up() -> None:
    @multiplexed
    async def load(model_id: str) -> Model:
        await asyncio.sleep(3600 if model_id == "stuck" else 1)
        return Model(model_id)

    async def impatient() -> None:
        async with asyncio.timeout(10):
            await load("stuck")

    stuck, other = request(impatient), use(load, "a")
    began = asyncio.get_running_loop().time()
    assert await other == "a"
    assert round(asyncio.get_running_loop().time() - began) == 11
    with pytest.raises(TimeoutError):
        await stuck


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.virtual_time
async def test_a_load_that_is_cancelled_before_it_begins_holds_up_nobody(turns: int) -> None:
    """A request ends, and the one that waits for its place leaves a few turns of the loop later."""

    loader = Light().get_model
    first = request(lambda: keep(loader, "a", for_s=10))
    await asyncio.sleep(5)
    second = request(lambda: keep(loader, "b"))
    await first
    for _ in range(turns):
        await asyncio.sleep(0)
    second.cancel()
    async with asyncio.timeout(10):
        await request(lambda: keep(loader, "c"))
    assert second.cancelled()
    assert loader.loaded() == ["c"]


@pytest.mark.virtual_time
async def test_a_replica_stops_however_many_wait_for_their_models(replica: ReplicaContext) -> None:
    loader = Light().get_model
    waiting = [request(lambda name=name: keep(loader, name)) for name in "abcdef"]  # type: ignore[misc]
    await asyncio.sleep(0.5)
    async with asyncio.timeout(10):
        await replica.held_models.close()
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert "this replica has stopped" in str(result)
    assert LOG == ["load a"]
    assert loader.held == []


@pytest.mark.virtual_time
async def test_a_task_that_outlives_its_request_does_not_keep_its_model_for_ever() -> None:
    loader = Light().get_model
    left_behind: list[asyncio.Task[None]] = []

    async def leave_two_behind() -> None:
        left_behind.extend(asyncio.create_task(keep(loader, name)) for name in "ab")
        await asyncio.sleep(0.5)

    await request(leave_two_behind)
    await asyncio.gather(*left_behind)
    async with asyncio.timeout(10):
        await request(lambda: keep(loader, "c"))


async def test_a_loader_that_returns_nothing_is_told_so() -> None:
    @multiplexed
    async def load(model_id: str) -> None:
        return None

    with pytest.raises(TypeError, match="returned None for model 'a'"):
        await load("a")


async def test_a_loader_that_cancels_itself_fails_like_any_other() -> None:
    @multiplexed
    async def load(model_id: str) -> Model:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="load of model 'a' was cancelled"):
        await load("a")


@pytest.mark.parametrize(
    ("model_id", "error"), ((7, TypeError), (None, TypeError), ("", ValueError))
)
async def test_an_id_that_is_none_is_refused(model_id: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="model id"):
        await App().get_model(model_id)


async def test_an_id_of_another_class_of_text_is_known_as_plain_text() -> None:
    class Named(str):
        """As numpy has one."""

        __slots__ = ()

    known: list[type] = []

    @multiplexed
    async def load(model_id: str) -> Model:
        known.append(type(model_id))
        return Model(model_id)

    assert await load(Named("a")) is await load("a")
    assert known == [str]


async def test_the_id_is_given_by_position() -> None:
    app: Any = App()
    with pytest.raises(TypeError, match="positional"):
        await app.get_model(model_id="a")
    with pytest.raises(TypeError):
        await app.get_model("a", "b")
    with pytest.raises(TypeError):
        await app.get_model()


async def test_outside_a_replica_nothing_is_loaded() -> None:
    set_replica_context(None)
    with pytest.raises(RuntimeError, match="only inside a replica"):
        await App().get_model("a")


async def test_another_event_loop_is_refused() -> None:
    app = App()
    await app.get_model.preload([])

    def elsewhere() -> None:
        asyncio.run(app.get_model.__call__("a"))

    with pytest.raises(RuntimeError, match="replica's event loop only"):
        await asyncio.to_thread(elsewhere)


async def test_an_object_without_a_dict_cannot_hold_models() -> None:
    class Slotted:
        __slots__ = ()

        @multiplexed
        async def get_model(self, model_id: str) -> str:
            return model_id

    with pytest.raises(TypeError, match="has no __dict__"):
        await Slotted().get_model("a")


# -- pins, preloads, bytes -------------------------------------------------------------------------


async def test_pinned_models_stay_and_what_finds_no_room_is_refused() -> None:
    class Pinning:
        @multiplexed(max_num_models_per_replica=2, pin=["base"], preload=["first"])
        async def get_model(self, model_id: str) -> str:
            LOG.append(f"load {model_id}")
            return model_id

    app = Pinning()
    await type(app).__dict__["get_model"].__remora_preload__(app)
    assert set(app.get_model.loaded()) == {"base", "first"}
    for model_id in "abc":
        await app.get_model(model_id)
    assert set(app.get_model.loaded()) == {"base", "c"}
    await app.get_model.pin("c")
    with pytest.raises(RuntimeError, match=r"no room for model 'd'.*Pinned: base, c"):
        await app.get_model("d")
    with pytest.raises(ValueError, match="cannot be pinned"):
        await app.get_model.pin("d")
    app.get_model.unpin("base")
    assert await app.get_model("d") == "d"
    assert set(app.get_model.loaded()) == {"c", "d"}


async def test_what_the_decorator_names_is_loaded_by_a_function_at_its_first_use() -> None:
    @multiplexed(preload=["x", "y"])
    async def load(model_id: str) -> str:
        return model_id

    assert await load("z") == "z"
    assert set(load.loaded()) == {"x", "y", "z"}


@pytest.mark.virtual_time
async def test_what_the_decorator_names_is_loaded_by_the_next_use_if_the_first_one_fails() -> None:
    attempts: list[str] = []

    @multiplexed(pin=["p"], preload=["x"])
    async def load(model_id: str) -> str:
        attempts.append(model_id)
        await asyncio.sleep(1)
        if attempts.count("p") == 1 and model_id == "p":
            raise OSError("the network is away")
        return model_id

    uses = [request(lambda: load("z")) for _ in range(3)]
    for result in await asyncio.gather(*uses, return_exceptions=True):
        assert isinstance(result, OSError)
    # One who leaves does not end the second attempt of the others.
    uses = [request(lambda: load("z")) for _ in range(3)]
    await asyncio.sleep(0.5)
    uses[0].cancel()
    assert await asyncio.gather(*uses[1:]) == ["z", "z"]
    assert load._cache.pinned == {"p"}
    assert set(load.loaded()) == {"p", "x", "z"}
    assert sorted(attempts) == ["p", "p", "x", "z"]


@pytest.mark.virtual_time
async def test_a_pin_holds_if_one_of_those_who_pin_gets_its_model() -> None:
    loader = Light().get_model
    leaves, stays = (asyncio.create_task(loader.pin("a")) for _ in range(2))
    await asyncio.sleep(0.5)
    leaves.cancel()
    await stays
    assert loader._cache.pinned == {"a"}
    loader.unpin("a")
    leaves, leaves_too = (asyncio.create_task(loader.pin("b")) for _ in range(2))
    await asyncio.sleep(0.5)
    leaves.cancel()
    leaves_too.cancel()
    await asyncio.wait((leaves, leaves_too))
    assert loader._cache.pinned == set()


@pytest.mark.virtual_time
async def test_preload_loads_several_and_says_what_failed() -> None:
    app = App()
    await app.get_model.preload(["a", "b"])
    assert set(app.get_model.loaded()) == {"a", "b"}
    with pytest.raises(ValueError, match="room for 2"):
        await app.get_model.preload(["a", "b", "c"])
    with pytest.raises(TypeError, match="a list of model ids"):
        await app.get_model.preload("ab")
    other = App()
    with pytest.raises(OSError, match="no file for bad"):
        await other.get_model.preload(["bad", "c"])
    assert other.get_model.loaded() == ["c"]
    with pytest.raises(OSError, match="no file for bad"):
        await other.get_model.pin("bad")
    assert other.get_model._cache.pinned == set()


async def test_models_share_the_bytes_of_a_replica() -> None:
    sizes = {"small": 2, "medium": 5, "large": 9, "huge": 11, "odd": -1}

    @multiplexed(max_num_models_per_replica=-1, max_bytes_per_replica=10, size_fn=sizes.__getitem__)
    async def load(model_id: str) -> str:
        return model_id

    for model_id in ("small", "medium"):
        await load(model_id)
    assert load.loaded() == ["small", "medium"]
    await load("large")
    assert load.loaded() == ["large"]
    for model_id in ("huge", "odd"):
        with pytest.raises(ValueError, match=f"takes {sizes[model_id]} bytes"):
            await load(model_id)
    with pytest.raises(KeyError):
        await load("unknown")


async def test_a_size_that_is_no_number_of_bytes_is_refused() -> None:
    size: Any = str

    @multiplexed(max_bytes_per_replica=10, size_fn=size)
    async def load(model_id: str) -> str:
        return model_id

    with pytest.raises(TypeError, match="size_fn"):
        await load("a")


# -- the request -----------------------------------------------------------------------------------


async def test_a_load_has_the_model_id_and_outlives_the_deadline_of_who_asked_first() -> None:
    seen: list[tuple[str, Any]] = []

    @multiplexed
    async def load(model_id: str) -> str:
        context = current.get()
        assert context is not None
        seen.append((get_multiplexed_model_id(), context.deadline))
        return model_id

    async def work() -> str:
        context = current.get()
        assert context is not None
        context.deadline = 5.0
        return f"{get_multiplexed_model_id()} {await load('a')}"

    assert await request(work, "m") == "m a"
    assert seen == [("a", None)]
    assert get_multiplexed_model_id() == ""


async def test_all_models_are_told_of_as_soon_as_their_load_begins(replica: ReplicaContext) -> None:
    told: list[list[str]] = []
    replica.held_models.tell = told.append
    app = App()
    loading = use(app.get_model, "a")
    await asyncio.sleep(0)
    assert told[-1] == ["a"]
    loading.cancel()
    await asyncio.wait([loading])
    await asyncio.sleep(0)
    assert told[-1] == []


async def test_more_ids_than_can_be_told_leave_the_most_recent(replica: ReplicaContext) -> None:
    @multiplexed(max_num_models_per_replica=-1)
    async def load(model_id: str) -> str:
        return model_id

    names = [f"{n:03}" + "x" * 997 for n in range(40)]
    for name in names:
        await load(name)
    told = replica.held_models.ids()
    assert 20 < len(told) < 40
    assert told == names[: -len(told) - 1 : -1]


# -- the decorator ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    (
        ({"max_num_models_per_replica": "3"}, TypeError, "must be an int"),
        ({"max_num_models_per_replica": 1.5}, TypeError, "must be an int"),
        ({"max_num_models_per_replica": True}, TypeError, "must be an int"),
        ({"max_num_models_per_replica": 0}, ValueError, "at least 1, or -1"),
        ({"max_num_models_per_replica": -2}, ValueError, "at least 1, or -1"),
        ({"max_concurrent_loads": 0}, ConfigError, "at least 1"),
        ({"max_bytes_per_replica": 10}, ConfigError, "needs a size_fn"),
        ({"size_fn": len}, ConfigError, "needs max_bytes_per_replica"),
        ({"size_fn": 3, "max_bytes_per_replica": 10}, TypeError, "must be a function"),
        ({"pin": "abc"}, TypeError, "a list of model ids"),
        ({"preload": [3]}, TypeError, "must be a str"),
        ({"preload": [""]}, ConfigError, "must not be empty"),
        ({"pin": ["a", "b"], "preload": ["b", "c", "d"]}, ConfigError, "4 models"),
    ),
)
def test_options_that_cannot_be_right_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        multiplexed(**options)


async def _three(self: object, model_id: str, more: str) -> str:
    return more


async def _none() -> str:
    return ""


async def _keyword(self: object, *, model_id: str) -> str:
    return model_id


async def _generator(self: object, model_id: str) -> Any:
    yield model_id


@pytest.mark.parametrize(
    "function", (_three, _none, _keyword, _generator, lambda self, model_id: model_id, 7)
)
def test_what_is_no_coroutine_function_of_one_id_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="async def get_model"):
        multiplexed(function)


async def test_a_plain_function_with_two_parameters_takes_the_first_for_self() -> None:
    @multiplexed(max_num_models_per_replica=1)
    async def load(owner: object, model_id: str) -> str:
        return model_id

    class Owner:
        pass

    assert await load(Owner(), "a") == "a"


def test_no_limit_but_minus_one_is_none() -> None:
    @multiplexed(max_num_models_per_replica=-1)
    async def load(model_id: str) -> str:
        return model_id

    assert load._options.limits.max_models is None


def test_the_default_is_three_models() -> None:
    @multiplexed
    async def load(model_id: str) -> str:
        return model_id

    assert load._options.limits.max_models == 3


async def test_loaders_travel_without_their_models() -> None:
    @multiplexed
    async def load(model_id: str) -> str:
        return model_id

    class Local:
        @multiplexed(max_num_models_per_replica=2)
        async def get_model(self, model_id: str) -> str:
            return model_id

    await load("a")
    copy, cls = pickle.loads(cloudpickle.dumps((load, Local)))
    assert copy.loaded() == []
    assert await copy("b") == "b"
    assert await cls().get_model("c") == "c"


async def test_an_extension_class_that_cannot_be_changed_is_destroyed_all_the_same() -> None:
    await destroy(object())
    await destroy(3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.virtual_time
async def test_whatever_happens_limits_hold_and_nobody_uses_what_has_ended(
    replica: ReplicaContext, seed: int
) -> None:
    """Requests that come, work, fail and leave at any time, over hours of virtual time."""
    rng = random.Random(seed)
    limit, num_loads = rng.choice(((1, 1), (3, 1), (3, 2), (5, 3)))
    live: set[object] = set()
    ends: Counter[str] = Counter()

    class Fragile:
        def __init__(self) -> None:
            live.add(self)
            assert len(live) <= limit

        async def __del__(self) -> None:
            live.remove(self)  # a second time is an error
            await asyncio.sleep(rng.random())

    @multiplexed(max_num_models_per_replica=limit, max_concurrent_loads=num_loads)
    async def load(model_id: str) -> Fragile:
        await asyncio.sleep(rng.random() * 5)
        if rng.random() < 0.1:
            raise OSError("no luck")
        return Fragile()

    async def work() -> None:
        model = await load(f"m{int(rng.paretovariate(0.7)) % 12}")
        for _ in range(3):
            assert model in live
            await asyncio.sleep(rng.random() * 3)

    tasks = []
    for _ in range(400):
        task = request(work)
        tasks.append(task)
        if rng.random() < 0.2:
            asyncio.get_running_loop().call_later(rng.random() * 8, task.cancel)
        await asyncio.sleep(rng.random() * 3)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        ends[type(result).__name__] += 1
    assert load.held == load.loaded()
    await replica.held_models.close()
    assert not live
    assert set(ends) == {"NoneType", "CancelledError", "OSError"}
    assert ends["NoneType"] > 200


def test_an_unknown_option_names_the_one_that_was_meant() -> None:
    meant = "Did you mean 'max_num_models_per_replica'"
    with pytest.raises(TypeError, match=f"'max_num_model_per_replica'. {meant}"):
        multiplexed(max_num_model_per_replica=3)  # type: ignore[call-overload]
