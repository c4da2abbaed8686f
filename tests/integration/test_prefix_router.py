"""Prompts that begin alike go to one replica, as long as that is no worse for them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.rig import Rig, call, until
from tests.integration.test_custom_routers import routed

from remora.build.routers import with_policy
from remora.config import DeploymentConfig, RequestRouterConfig
from remora.errors import ConfigError
from remora.llm.request_router import PrefixCacheAffinityRouter, prompt_of


def text(number: int) -> str:
    return f"Document {number}: " + f"{number} " * 200


async def test_prompts_that_begin_alike_share_a_replica(rig: Rig) -> None:
    _, router = await routed(rig, PrefixCacheAffinityRouter, limit=100)
    homes = {n: await call(router, "which", text(n)) for n in range(6)}
    # New prompts go where the least is remembered, so they are spread.
    assert set(homes.values()) == {"r0", "r1", "r2"}
    for n in range(6):
        assert await call(router, "which", text(n) + "And what of it?") == homes[n]
    assert router.custom.errors == {}


@pytest.mark.parametrize(("threshold", "most_apart"), [(3, 4), (None, 9)])
async def test_a_replica_far_busier_than_others_is_left_alone(
    rig: Rig, threshold: int | None, most_apart: int
) -> None:
    kwargs = {} if threshold is None else {"imbalanced_threshold": threshold}
    nodes, router = await routed(rig, PrefixCacheAffinityRouter, 2, 100, **kwargs)
    home = int((await call(router, "which", text(1)))[1])
    held = []
    for count in range(1, 10):
        held.append(call(router, "hold", text(1)))
        await until(lambda count=count: sum(n.replica.ongoing for n in nodes) == count)  # type: ignore[misc]
    apart = nodes[home].replica.ongoing - nodes[1 - home].replica.ongoing
    assert apart == 9 if threshold is None else 0 < apart <= most_apart
    for node in nodes:
        node.target.gate.set()
    await asyncio.gather(*held)


async def test_what_is_remembered_is_bounded(rig: Rig) -> None:
    limits = {"eviction_threshold_chars": 2000, "eviction_target_chars": 1000}
    _, router = await routed(rig, PrefixCacheAffinityRouter, 1, eviction_interval_secs=0, **limits)
    for number in range(10):
        await call(router, "which", text(number))
    tree = router.custom._user._router._tree
    assert 0 < tree.chars("default/App#r0") <= 2000


@pytest.mark.parametrize(
    "kwargs",
    [
        {"match_rate_threshold": 2},
        {"imbalanced_threshold": -1},
        {"eviction_threshold_chars": 10, "eviction_target_chars": 20},
        {"do_eviction": 1},
        {"no_such": 1},
    ],
)
def test_arguments_that_cannot_be_right_are_refused_at_the_deploy(kwargs: dict[str, Any]) -> None:
    config = RequestRouterConfig(
        request_router_class=PrefixCacheAffinityRouter, request_router_kwargs=kwargs
    )
    with pytest.raises(ConfigError, match=next(iter(kwargs))):
        with_policy(DeploymentConfig(request_router_config=config))


@pytest.mark.parametrize(
    ("args", "prompt"),
    [
        ((), ""),
        (("hello",), "hello"),
        ((3,), ""),
        (({"prompt": "hello"},), "hello"),
        ((SimpleNamespace(prompt="hello"),), "hello"),
        (({"messages": [{"role": "user", "content": "hi"}]},), "user: hi"),
        (
            (SimpleNamespace(messages=[{"role": "user", "content": [{"text": "a"}, {"n": 1}]}]),),
            "user: a",
        ),
    ],
)
def test_the_prompt_is_found_in_the_first_argument(args: tuple[Any, ...], prompt: str) -> None:
    assert prompt_of(args) == prompt
