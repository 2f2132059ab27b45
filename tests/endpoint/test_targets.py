"""Where sessions go, and when they are cut."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from aurora_ray.endpoint.relay import Relay, Target
from aurora_ray.errors import ConfigurationError, FencedError, UsageError
from tests.endpoint.backends import Client, backend, client, unused_address
from tests.support.polling import poll_until

CUT_WITHIN_S = 0.1


async def test_a_switch_resets_old_sessions_and_new_ones_reach_the_new_target(relay: Relay) -> None:
    async with backend("old") as old, backend("new") as new, client(relay.port) as session:
        relay.set_targets([old.address], 1)
        assert await session.greeting() == "old"
        assert await session.echo(b"x") == b"x"

        began_s = time.monotonic()
        relay.set_targets([new.address], 2)
        with pytest.raises(ConnectionResetError):
            await session.read_to_end()
        assert time.monotonic() - began_s < CUT_WITHIN_S
        await poll_until(lambda: old.resets == 1, what="the demoted one sees the reset")

        async with client(relay.port) as later:
            assert await later.greeting() == "new"
        assert relay.stats().cut == 1


async def test_withdrawal_resets_a_session_whose_peers_do_not_read(relay: Relay) -> None:
    """The demoted engine may be stopped, and its client deep in a transfer: that must not keep them together."""
    with socket.create_server(("127.0.0.1", 0)) as stuck, socket.socket() as session:
        relay.set_targets([stuck.getsockname()], 1)
        session.connect(("127.0.0.1", relay.port))
        await poll_until(lambda: relay.stats().open == 1)
        session.setblocking(False)
        before = -1
        while relay.stats().bytes_up != before:  # until every buffer on the way is full
            before = relay.stats().bytes_up
            try:
                while session.send(bytes(1 << 20)):
                    pass
            except BlockingIOError:
                await asyncio.sleep(0.05)  # not synchronisation: time for the relay to take more, if it can
        began_s = time.monotonic()
        relay.set_targets([], 2)
        await poll_until(lambda: _is_reset(session), what="the client sees the reset", interval_s=0.001)
        assert time.monotonic() - began_s < CUT_WITHIN_S


def _is_reset(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


async def test_an_order_that_changes_nothing_cuts_nothing(relay: Relay) -> None:
    async with backend("a") as a, backend("b") as b, client(relay.port) as session:
        relay.set_targets([Target(*a.address, "one")], 1)
        assert await session.greeting() == "a"
        relay.set_targets([Target(*a.address, "one")], 1)
        relay.set_targets([Target(*b.address, "one"), Target(*a.address, "one")], 7)
        assert await session.echo(b"still here") == b"still here"
        assert relay.stats().cut == 0


async def test_a_new_incarnation_at_the_old_address_is_another_target(relay: Relay) -> None:
    async with backend("a") as a, client(relay.port) as session:
        relay.set_targets([Target(*a.address, "one")], 1)
        assert await session.greeting() == "a"
        relay.set_targets([Target(*a.address, "two")], 1)
        with pytest.raises(ConnectionResetError):
            await session.read_to_end()


async def test_a_replaced_owner_is_refused(relay: Relay) -> None:
    async with backend("old") as old, backend("new") as new:
        relay.set_targets([new.address], 5)
        with pytest.raises(FencedError, match="generation 4"):
            relay.set_targets([old.address], 4)
        async with client(relay.port) as session:
            assert await session.greeting() == "new"


async def test_sessions_spread_over_targets_and_go_where_there_are_fewest(relay: Relay) -> None:
    async with backend("a") as a, backend("b") as b, backend("c") as c, AsyncExitStack() as stack:
        relay.set_targets([a.address, b.address, c.address], 1)
        sessions = [await stack.enter_async_context(client(relay.port)) for _ in range(9)]
        names = [await session.greeting() for session in sessions]
        assert sorted(names) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
        for session, name in zip(sessions, names, strict=True):
            if name == "b":
                await session.close()
        await poll_until(lambda: relay.stats().open == 6)
        later = [await (await stack.enter_async_context(client(relay.port))).greeting() for _ in range(3)]
        assert later == ["b"] * 3


async def test_one_after_the_other_is_served_in_turn(relay: Relay) -> None:
    async with backend("a") as a, backend("b") as b:
        relay.set_targets([a.address, b.address], 1)
        names = []
        for _ in range(6):
            async with client(relay.port) as session:
                names.append(await session.greeting())
            await poll_until(lambda: relay.stats().open == 0)
        assert names in (["a", "b"] * 3, ["b", "a"] * 3)


async def test_the_fallback_serves_when_there_is_no_other_or_none_accepts(relay: Relay) -> None:
    async with backend("writer") as writer, backend("reader") as reader, AsyncExitStack() as stack:
        relay.set_targets([], 1, fallback=[Target(*writer.address, "w")])
        first = await stack.enter_async_context(client(relay.port))
        assert await first.greeting() == "writer"

        relay.set_targets([Target(*reader.address, "r")], 1, fallback=[Target(*writer.address, "w")])
        second = await stack.enter_async_context(client(relay.port))
        assert await second.greeting() == "reader"
        assert await first.echo(b"not cut") == b"not cut"

        relay.set_targets([unused_address()], 1, fallback=[Target(*writer.address, "w")])
        third = await stack.enter_async_context(client(relay.port))
        assert await third.greeting() == "writer"
        assert relay.stats().connect_failures == 1


async def test_a_target_that_does_not_accept_is_passed_over(relay: Relay) -> None:
    async with backend("a") as a, AsyncExitStack() as stack:
        relay.set_targets([unused_address(), a.address, unused_address()], 1)
        for _ in range(4):
            session: Client = await stack.enter_async_context(client(relay.port))
            assert await session.greeting() == "a"


async def test_orders_while_sessions_come_and_go(relay: Relay) -> None:
    """No session ever reaches a target that was not in force between its connect and its greeting."""
    async with backend("0") as even, backend("1") as odd:
        backends = [even, odd]
        relay.set_targets([even.address], 0)
        for generation in range(1, 60):
            waiting = [await Client.connect(relay.port) for _ in range(4)]
            relay.set_targets([backends[generation % 2].address], generation)
            fresh = await Client.connect(relay.port)
            assert await fresh.greeting() == str(generation % 2)
            for session in [*waiting, fresh]:
                session.abort()
                await session.close()


def test_orders_from_many_threads_are_all_obeyed() -> None:
    relay = Relay()
    relay.start()
    failures: list[Exception] = []

    def order() -> None:
        try:
            for port in range(1, 200):
                relay.set_targets([("127.0.0.1", port)], 1)
                relay.stats()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=order) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    relay.close()
    assert not failures


def test_wrong_targets_are_refused(make_relay: Callable[..., Relay]) -> None:
    relay = make_relay()
    with pytest.raises(UsageError, match="numeric"):
        relay.set_targets([("localhost", 1)], 1)
    with pytest.raises(UsageError, match="at most 64"):
        relay.set_targets([("127.0.0.1", port) for port in range(1, 66)], 1)
    relay.set_targets([("::1", 5432)], 1)


def test_a_port_in_use_is_refused_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} on 127.0.0.1 is in use: stop .* or choose"):
            Relay().start("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1"):
        Relay().start("192.0.2.1", 0)


async def test_a_closed_relay_gives_its_port_back_at_once(make_relay: Callable[..., Relay]) -> None:
    first = make_relay()
    async with backend("a") as a, client(first.port) as session:
        first.set_targets([a.address], 1)
        assert await session.greeting() == "a"
        first.close()
        with pytest.raises(ConnectionResetError):
            await session.read_to_end()
        again = Relay()
        assert again.start("127.0.0.1", first.port) == first.port
        again.close()
    assert first.stats().accepted == 1
    with pytest.raises(UsageError):
        first.set_targets([], 2)
