"""What is known of what instances hold of their machines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aurora_ray.control.model.runtime import NoPlaceError, Room, Short
from aurora_ray.control.observe.pools import ASK_AGAIN_S, LOOK_AGAIN_S, Pools


async def test_what_was_cut_short_is_looked_at_anew_and_want_of_room_is_remembered() -> None:
    held, now_s = {"a": 1.0}, [0.0]

    async def look() -> dict[str, float]:
        return dict(held)

    async def hold(of: str, _host: str, acu: float, _cpus: float) -> float:
        held[of] = min(acu, 2.0)
        if acu == 1.5:
            raise NoPlaceError("no answer came, and it was done")
        return held[of]

    async def rooms(_cpus: float) -> list[Room]:
        return [Room("here", ("a",), 0.5), Room("there", ("b",), 3.0)]

    runtime: Any = SimpleNamespace(held_capacity=look, hold_capacity=hold, rooms=rooms)
    pools = Pools(runtime, lambda: now_s[0])
    with pytest.raises(NoPlaceError):
        await pools.hold("a", "here", 1.5, 0.25)
    assert pools.held is None
    assert await pools.hold("a", "here", 4.0, 0.25) == 2.0
    assert (pools.held, pools.short()) == ({"a": 2.0}, {"a": Short(2.0, 4.0, (Room("there", ("b",), 3.0),))})
    now_s[0] += ASK_AGAIN_S
    assert pools.short() == {}


async def test_what_is_lost_is_missed_after_a_while_and_where_nothing_is_held_nobody_looks() -> None:
    held, now_s = {"a": 1.0}, [0.0]

    async def look() -> dict[str, float]:
        return dict(held)

    runtime: Any = SimpleNamespace(held_capacity=look)
    pools = Pools(runtime, lambda: now_s[0])
    await pools.look()
    held.clear()
    now_s[0] = LOOK_AGAIN_S - 1
    assert pools.held == {"a": 1.0}
    now_s[0] = LOOK_AGAIN_S
    assert pools.held is None
    await pools.look()
    assert pools.held == {}
    now_s[0] *= 3
    assert pools.held == {}
