"""All endpoints of a fleet in one process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from aurora_ray import telemetry
from aurora_ray.endpoint.bell import HeldBell
from aurora_ray.endpoint.host import EndpointHost, EndpointOrder
from aurora_ray.endpoint.relay import Target
from aurora_ray.errors import FencedError, UsageError
from tests.endpoint.backends import Backend, backend, client
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator

HOST = "127.0.0.1"


@pytest.fixture
async def host() -> AsyncIterator[EndpointHost]:
    made = EndpointHost(hold_s=5.0)
    yield made
    made.close()


def order(name: str, port: int, *targets: Backend, fallback: tuple[Backend, ...] = ()) -> EndpointOrder:
    def named(backends: tuple[Backend, ...]) -> tuple[Target, ...]:
        return tuple(Target(*b.address, b.name) for b in backends)

    return EndpointOrder(name, HOST, port, named(targets), named(fallback))


async def test_orders_are_carried_out_as_a_whole(host: EndpointHost, ports: PortAllocator) -> None:
    one, two = ports.allocate(), ports.allocate()
    async with backend("a") as a, backend("b") as b:
        states = host.apply([order("x/cluster", one, a), order("x/reader", two, b, fallback=(a,))], 1)
        assert [(s.name, s.port, s.problem) for s in states] == [("x/cluster", one, ""), ("x/reader", two, "")]
        async with client(one) as writing, client(two) as reading:
            assert (await writing.greeting(), await reading.greeting()) == ("a", "b")
            host.apply([order("x/cluster", one, b), order("x/reader", two, b, fallback=(a,))], 1)
            with pytest.raises(ConnectionResetError):
                await writing.read_to_end()
            assert await reading.echo(b"untouched") == b"untouched"
            host.apply([order("x/cluster", one, b)], 1)
            with pytest.raises(ConnectionResetError):
                await reading.read_to_end()
        assert [(s.name, s.stats.accepted, s.stats.cut) for s in host.states()] == [("x/cluster", 1, 1)]
        with pytest.raises(ConnectionRefusedError):
            await client(two).__aenter__()


async def test_how_long_is_waited_changes_without_cutting_a_session(host: EndpointHost, free_port: int) -> None:
    async with backend("a") as a:
        host.apply([order("x", free_port, a)], 1)
        async with client(free_port) as session:
            assert await session.greeting() == "a"
            host.apply([replace(order("x", free_port, a), hold_s=60.0)], 1)
            assert await session.echo(b"untouched") == b"untouched"


async def test_a_restarted_host_is_told_again_and_listens_on_the_same_port(ports: PortAllocator) -> None:
    port = ports.allocate()
    async with backend("a") as a:
        for generation in (3, 3, 4):
            host = EndpointHost()
            host.apply([order("x", port, a)], generation)
            async with client(port) as session:
                assert await session.greeting() == "a"
                host.close()


async def test_an_owner_that_was_replaced_changes_nothing(host: EndpointHost, free_port: int) -> None:
    async with backend("old") as old, backend("new") as new:
        host.apply([order("x", free_port, new)], 7)
        with pytest.raises(FencedError, match="generation 6"):
            host.apply([order("x", free_port, old)], 6)
        with pytest.raises(FencedError):
            host.apply([], 6)
        async with client(free_port) as session:
            assert await session.greeting() == "new"


async def test_one_bad_endpoint_holds_up_no_other(host: EndpointHost, free_port: int) -> None:
    async with backend("a") as a:
        with socket.create_server((HOST, 0)) as taken:
            orders = [order("bad", taken.getsockname()[1], a), order("good", free_port, a)]
            bad, good = host.apply(orders, 1)
            assert "is in use" in bad.problem
            assert good.problem == ""
            async with client(free_port) as session:
                assert await session.greeting() == "a"
        bad, good = host.apply(orders, 1)  # told again, it tries again
        assert (bad.problem, good.problem) == ("", "")


async def test_an_endpoint_moves_to_another_port(host: EndpointHost, ports: PortAllocator) -> None:
    async with backend("a") as a:
        for port in (ports.allocate(), ports.allocate()):
            host.apply([order("x", port, a)], 1)
            async with client(port) as session:
                assert await session.greeting() == "a"


async def test_sessions_are_counted_as_metrics(host: EndpointHost, free_port: int) -> None:
    async with backend("a") as a:
        host.apply([order("x", free_port, a)], 1)
        async with client(free_port) as session:
            assert await session.greeting() == "a"
            assert b'aurora_endpoint_open_sessions{endpoint="x"} 1.0' in telemetry.exposition()
        host.apply([], 1)
        assert b'endpoint="x"' not in telemetry.exposition()


def test_an_endpoint_cannot_be_ordered_twice(host: EndpointHost) -> None:
    with pytest.raises(UsageError, match="twice"):
        host.apply([EndpointOrder("x", HOST, 1), EndpointOrder("x", HOST, 2)], 1)


async def test_nothing_is_withdrawn_while_anything_is_in_use(host: EndpointHost, ports: PortAllocator) -> None:
    one, two = ports.allocate(), ports.allocate()
    async with backend("a") as a, backend("b") as b:
        host.apply([order("x/cluster", one, a), order("x/reader", two, b, fallback=(a,))], 4)
        async with client(two) as session:
            assert await session.greeting() == "b"
            assert host.withdraw(["x/cluster", "x/reader"], 4) == ("x/reader",)
            async with client(one) as other:
                assert await other.greeting() == "a", "all is as before"
            assert await session.echo(b"still") == b"still"
        await poll_until(lambda: not any(state.stats.open for state in host.states()), what="both are gone")
        assert host.withdraw(["x/cluster", "x/reader", "unknown"], 4) == ()
        async with client(one) as waiting:
            await poll_until(lambda: host.held(["x/cluster", "x/reader"]) == ("x/cluster",), what="it is held")
            host.apply([order("x/cluster", one, a), order("x/reader", two, b)], 4)
            assert await waiting.greeting() == "a"
        with pytest.raises(FencedError):
            host.withdraw(["x/cluster"], 3)


async def test_sessions_that_come_while_it_is_withdrawn_are_held_or_refuse_it(
    host: EndpointHost, free_port: int
) -> None:
    """Whatever comes first: nobody is cut."""
    async with backend("a") as a:
        host.apply([order("x", free_port, a)], 1)
        withdrawn = 0
        for _ in range(40):
            async with client(free_port) as session:
                done = not host.withdraw(["x"], 1)
                withdrawn += done
                if done:
                    host.apply([order("x", free_port, a)], 1)
                assert await session.greeting() == "a"
        assert sum(state.stats.cut for state in host.states()) == 0


async def test_a_bell_rings_when_somebody_is_held(host: EndpointHost, free_port: int) -> None:
    bell = HeldBell()
    try:
        async with backend("a") as a:
            host.apply([order("x", free_port)], 1)
            assert await bell.wait(lambda: host.held(["x"]), 0.05) == ()
            waiting = asyncio.create_task(bell.wait(lambda: host.held(["x"]), 20))
            async with client(free_port) as session:
                assert await waiting == ("x",)
                assert await bell.wait(lambda: host.held(["x"]), 0) == ("x",), "who waits already is seen too"
                host.apply([order("x", free_port, a)], 1)
                assert await session.greeting() == "a"
    finally:
        bell.close()
