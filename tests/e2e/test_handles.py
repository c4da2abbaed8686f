"""Handles from everywhere: a script, threads, other event loops, a notebook, another replica."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.test_script import lines_of, run_script

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

APP = """
import threading

@serve.deployment(num_replicas=2, max_ongoing_requests=10)
class Worker:
    def __init__(self):
        self.seen = []
    async def double(self, x): return 2 * x
    async def total(self, items): return sum([x async for x in items])
    async def count(self, n):
        for i in range(n): yield i
    async def me(self): return serve.get_replica_context().replica_id
    async def die(self):
        import os
        os._exit(3)

@serve.deployment
class Caller:
    def __init__(self, worker): self.worker = worker
    async def chain(self, n):
        numbers = self.worker.options(stream=True).count.remote(n)
        return await self.worker.double.remote(self.worker.total.remote(numbers))
    async def chosen(self):
        async with self.worker.choose_replica() as selection:
            return await self.worker.me.dispatch(selection) == selection.replica_id
    def plain(self, n):
        found = self.worker.broadcast("double", n).results(timeout_s=20)
        return found + [self.worker.total.remote(i for i in range(n)).result()]
    async def relay(self, items):
        async for item in self.worker.options(stream=True).count.remote(await self.worker.total.remote(items)):
            yield item

handle = serve.run(Caller.bind(Worker.bind()))
worker = serve.get_deployment_handle("Worker", "default")
"""


def test_a_script_and_replicas_use_all_that_handles_can(remora_home: Path) -> None:
    done = run_script(
        APP
        + """
print(handle.chain.remote(10).result(), handle.chosen.remote().result())
print(handle.plain.remote(4).result())
print(list(handle.options(stream=True).relay.remote(i for i in range(3))))
print(len(set(worker.broadcast("me").results())), len(worker.broadcast("me").results()))
packed = worker.options(request_serialization="msgpack", response_serialization="orjson")
print(packed.double.remote(21).result())
try:
    worker.double.remote(worker.die.remote()).result()
except serve.exceptions.ReplicaDiedError as error:
    print("died", "Worker#" in str(error))
""".replace("serve.exceptions", "__import__('remora.exceptions').exceptions"),
        remora_home,
    )
    assert lines_of(done) == ["90 True", "[8, 8, 6]", "[0, 1, 2]", "2 2", "42", "died True"]


def test_one_handle_serves_threads_and_several_loops(remora_home: Path) -> None:
    done = run_script(
        APP
        + """
from concurrent.futures import ThreadPoolExecutor

async def many(n):
    return sum(await asyncio.gather(*(worker.double.remote(i) for i in range(n))))

def in_a_loop(n):
    return asyncio.run(many(n))

def in_a_thread(n):
    return sum(r.result() for r in [worker.double.remote(i) for i in range(n)])

with ThreadPoolExecutor(6) as pool:
    found = [pool.submit(work, 50) for work in (in_a_loop, in_a_thread) * 3]
    print([f.result() for f in found])

async def elsewhere():
    # Made here, awaited and waited for in a thread and in another loop.
    response = worker.double.remote(4)
    async def awaited():
        return await response
    return [await asyncio.to_thread(response.result), await asyncio.to_thread(asyncio.run, awaited()),
            await response]

print(asyncio.run(elsewhere()))
made_in_a_thread = worker.double.remote(5)
async def awaits(): return await made_in_a_thread
print(asyncio.run(awaits()), made_in_a_thread.result())
""",
        remora_home,
    )
    assert lines_of(done) == [str([2450] * 6), "[8, 8, 8]", "10 10"]


def test_cells_of_a_notebook_await_at_the_top_level(remora_home: Path) -> None:
    """One loop runs for as long as the kernel; each cell is compiled with top-level await in it."""
    cells = [
        "handle = serve.run(Caller.bind(Worker.bind()))",
        "worker = serve.get_deployment_handle('Worker', 'default')",
        "responses = [worker.double.remote(i) for i in range(3)]",
        "print([await r for r in responses], await handle.chain.remote(4))",
        "print([x async for x in worker.options(stream=True).count.remote(3)])",
        "async def numbers():\n    yield 1\n    yield 2",
        "print(await worker.total.remote(numbers()), await handle.chosen.remote())",
        "print(await worker.broadcast('double', 3).results_async())",
        "try:\n    responses[0].result()\nexcept RuntimeError as error:\n    print('await' in str(error))",
        "waiting = asyncio.ensure_future(worker.total.remote(endless())._wait())",
        "waiting.cancel()",
        "print(serve.status().applications['default'].status.value)",
    ]
    done = run_script(
        APP.rpartition("\nhandle = ")[0]
        + f"""
import ast, inspect
async def endless():
    while True:
        yield 1
        await asyncio.sleep(0)

async def run_cell(source):
    code = compile(source, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, globals())
    if inspect.isawaitable(result):
        await result

kernel = asyncio.new_event_loop()
async def main():
    for cell in {cells!r}:
        await asyncio.get_running_loop().create_task(run_cell(cell))
kernel.run_until_complete(main())
""",
        remora_home,
    )
    assert lines_of(done) == ["[0, 2, 4] 12", "[0, 1, 2]", "3 True", "[6, 6]", "True", "RUNNING"]
