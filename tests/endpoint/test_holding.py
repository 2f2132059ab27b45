"""Connections that come while there is no target: held within bounds, and let through when there is one."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from aurora_ray.endpoint.relay import Relay
from tests.endpoint.backends import Backend, backend, client, unused_address
from tests.support.polling import poll_until


async def test_held_connections_are_served_when_a_target_comes(relay: Relay) -> None:
    async with backend("a") as a, AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(client(relay.port)) for _ in range(20)]
        for number, session in enumerate(sessions):
            session.writer.write(b"early %d" % number)
        await poll_until(lambda: relay.stats().held == 20)
        assert relay.stats().bytes_up == 0
        relay.set_targets([a.address], 1)
        for number, session in enumerate(sessions):
            assert await session.greeting() == "a"
            expected = b"early %d" % number
            assert await session.reader.readexactly(len(expected)) == expected
        stats = relay.stats()
        assert (stats.held, stats.open, stats.accepted) == (0, 20, 20)


async def test_a_target_that_does_not_accept_yet_is_tried_again(relay: Relay) -> None:
    address = unused_address()
    relay.set_targets([address], 1)
    async with client(relay.port) as session:
        await poll_until(lambda: relay.stats().connect_failures >= 3)
        assert relay.stats().held == 1
        late = Backend("late")
        await late.start(address[1])
        try:
            assert await session.greeting() == "late"
        finally:
            await late.stop()


async def test_held_too_long_is_closed(make_relay: Callable[..., Relay]) -> None:
    relay = make_relay(hold_s=0.2)
    began_s = time.monotonic()
    async with client(relay.port) as without_target:
        assert await without_target.read_to_end() == b""
        assert 0.15 <= time.monotonic() - began_s < 2.0
    relay.set_targets([unused_address()], 1)
    async with client(relay.port) as refused:
        assert await refused.read_to_end() == b""
    stats = relay.stats()
    assert (stats.expired, stats.held) == (2, 0)


async def test_who_waits_already_is_held_longer_when_all_are(make_relay: Callable[..., Relay]) -> None:
    relay = make_relay(hold_s=0.3)
    async with client(relay.port) as session, backend("a") as a:
        await poll_until(lambda: relay.stats().held == 1)
        relay.set_hold(30.0)
        await asyncio.sleep(0.6)  # not synchronisation: the first limit passes
        assert relay.stats().held == 1
        relay.set_targets([a.address], 1)
        assert await session.greeting() == "a"
    relay.set_targets([], 2)
    relay.set_hold(0.2)
    async with client(relay.port) as later:
        assert await later.read_to_end() == b""


async def test_no_more_than_the_bound_are_held(make_relay: Callable[..., Relay]) -> None:
    relay = make_relay(held_max=3)
    async with backend("a") as a, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(client(relay.port)) for _ in range(3)]
        await poll_until(lambda: relay.stats().held == 3)
        async with client(relay.port) as too_many:
            assert await too_many.read_to_end() == b""
        assert relay.stats().refused == 1
        relay.set_targets([a.address], 1)
        assert [await session.greeting() for session in held] == ["a"] * 3
        async with client(relay.port) as later:
            assert await later.greeting() == "a"


async def test_no_more_than_the_bound_are_open(make_relay: Callable[..., Relay]) -> None:
    relay = make_relay(sessions_max=2)
    async with backend("a") as a, client(relay.port) as one:
        relay.set_targets([a.address], 1)
        assert await one.greeting() == "a"
        async with client(relay.port) as two:
            assert await two.greeting() == "a"
            async with client(relay.port) as three:
                assert await three.read_to_end() == b""
        await poll_until(lambda: relay.stats().open == 1)
        async with client(relay.port) as four:
            assert await four.greeting() == "a"


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_who_gives_up_is_let_go(relay: Relay, how: str) -> None:
    async with client(relay.port) as session:
        session.writer.write(b"hello")
        await poll_until(lambda: relay.stats().held == 1)
        if how == "rst":
            session.abort()
        await session.close()
        await poll_until(lambda: relay.stats().held == 0, timeout_s=2)


async def test_held_sessions_survive_several_changes_of_mind(relay: Relay) -> None:
    async with backend("a") as a, client(relay.port) as session:
        for generation in range(1, 20):
            relay.set_targets([unused_address()] if generation % 2 else [], generation)
            await asyncio.sleep(0)
        relay.set_targets([a.address], 20)
        assert await session.greeting() == "a"


async def test_waiting_costs_no_cpu_time(relay: Relay) -> None:
    """Neither idle nor with held, open, half-closed or blocked sessions does the thread spin."""
    async with backend("a") as a, AsyncExitStack() as stack:
        relay.set_targets([a.address], 1)
        idle, half_closed, blocked = [await stack.enter_async_context(client(relay.port)) for _ in range(3)]
        for session in (idle, half_closed, blocked):
            assert await session.greeting() == "a"
        blocked.writer.transport.pause_reading()  # type: ignore[attr-defined]
        blocked.writer.write(bytes(64 << 20))
        half_closed.writer.write_eof()
        await poll_until(lambda: a.ends == 1)
        before = relay.stats().bytes_down
        await poll_until(lambda: _settled(relay), what="nothing moves any more")
        assert relay.stats().bytes_down > before - 1
        began_ns = relay.stats().cpu_ns
        await asyncio.sleep(0.5)  # not synchronisation: the time during which nothing may happen
        assert relay.stats().cpu_ns - began_ns < 5_000_000
        blocked.abort()


def _settled(relay: Relay, last: list[int] = [0, 0]) -> bool:  # noqa: B006
    moved = relay.stats().bytes_up + relay.stats().bytes_down
    last[1] = last[1] + 1 if moved == last[0] else 0
    last[0] = moved
    return last[1] > 10
