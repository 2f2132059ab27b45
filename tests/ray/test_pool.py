"""What instances hold of their machines, on a Ray cluster of one machine with four CPUs and 6 GiB for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from aurora_ray.control.model.runtime import Room
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from aurora_ray.ray.pool import Pools

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(180),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
    pytest.mark.allowed_logs(r".*"),
]


@pytest.fixture
def machine() -> Iterator[str]:
    """Its address."""
    import ray
    import ray.util

    ray.init(
        num_cpus=4,
        _memory=6 << 30,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        resources={"az:b": 10.0, "az:a": 10.0},
    )
    yield ray.util.get_node_ip_address()
    ray.shutdown()


async def test_a_pool_grows_and_shrinks_by_halves_and_has_no_more_than_there_is(machine: str) -> None:
    from aurora_ray.ray.pool import Pools

    pools, others = Pools("fleet-1"), Pools("fleet-2")
    assert await pools.held() == {}
    assert await pools.rooms(0.25) == [Room(machine, ("a", "b"), 3.0)]
    assert await pools.rooms(2.0) == [Room(machine, ("a", "b"), 2.0)], "of CPUs, there are four"
    assert await pools.hold("a-1", machine, 1.5, 0.25) == 1.5
    assert await others.hold("a-1", machine, 0.5, 0.25) == 0.5
    assert await pools.held() == {"a-1": 1.5}
    assert await pools.hold("a-1", machine, 0.5, 0.25) == 0.5
    held = [0.0]
    for _ in range(20):  # what was given back is free a moment later
        held.append(await pools.hold("b-1", machine, 8, 0.25))
        if held[-1] == 2:
            break
    assert held[-1] == 2, "of the 6 GiB, 2 are others'"
    assert held == sorted(held), "what it has it keeps"
    await poll_until(lambda: _has_room(pools, 0.0), what="what is held is nobody else's")
    assert await pools.hold("a-1", machine, 1, 0.25) == 0.5
    assert await Pools("fleet-1").held() == {"a-1": 0.5, "b-1": 2}, "whoever comes next finds it"
    assert await Pools("fleet-1").hold("b-1", "", 0, 0.25) == 0
    assert await pools.held() == {"a-1": 0.5}
    for each in (pools, others):
        await each.hold("a-1", machine, 0, 0.25)
    assert await others.held() == {}


async def _has_room(pools: Pools, acu: float) -> bool:
    return [room.acu for room in await pools.rooms(0.25)] == [acu]
