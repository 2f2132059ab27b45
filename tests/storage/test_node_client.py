"""The one client of storage nodes: every call it has, what ends one, and the clients that are kept."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray import telemetry
from aurora_ray.errors import NodeTimeoutError, NodeUnreachableError, UnknownVolumeError
from aurora_ray.rpc.node_client import NodeClient, NodeClients
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.telemetry.spanreader import read_traces
from tests.storage.harness import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.allowed_logs("due to server stop")


@pytest.fixture
def deaf() -> Iterator[str]:
    """An address at which nobody answers, and nothing is refused."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
async def clients() -> AsyncIterator[NodeClients]:
    kept = NodeClients()
    yield kept
    await kept.close()


def test_every_call_of_storage_nodes_is_one_of_the_client() -> None:
    calls = {
        re.sub("(?<!^)(?=[A-Z])", "_", method.name).lower()
        for method in pb.DESCRIPTOR.services_by_name["StorageNode"].methods
    }
    own = {name for name, _ in inspect.getmembers(NodeClient, inspect.isfunction) if not name.startswith("_")}
    assert own - {"close"} == calls - {"append_port"}


async def test_a_refusal_says_which_node_and_is_of_our_tree(start: Any, clients: NodeClients) -> None:
    server = await start("n1")
    client = clients.get("n1", server.address)
    with pytest.raises(UnknownVolumeError, match="storage node n1: "):
        await client.seal(pb.SealRequest(volume=bytes(16), epoch=1, owner=bytes(16)))
    assert (await client.state(until_ready=True)).node_id == "n1"


async def test_a_call_that_nobody_answers_ends_in_time(deaf: str, clients: NodeClients) -> None:
    with pytest.raises(NodeTimeoutError):
        await clients.get("a-1", deaf).state(timeout_s=0.2, until_ready=True)


async def test_a_client_that_is_closed_fails_its_calls_and_cancels_nobody(deaf: str, clients: NodeClients) -> None:
    asking = [asyncio.create_task(clients.get("a-1", deaf).state(timeout_s=30, until_ready=True)) for _ in range(3)]
    await asyncio.sleep(0.1)  # not synchronisation: the calls are to be under way, at whatever stage
    await clients.forget("a-1")
    for each in asking:
        with pytest.raises(NodeUnreachableError):
            await each
        assert not each.cancelled()


async def test_a_caller_that_is_cancelled_is_cancelled(deaf: str, clients: NodeClients) -> None:
    asking = asyncio.create_task(clients.get("a-1", deaf).state(timeout_s=30, until_ready=True))
    await asyncio.sleep(0.1)  # not synchronisation: the call is to be under way
    asking.cancel()
    await asyncio.wait([asking], timeout=5)
    assert asking.cancelled()


async def test_one_client_is_kept_as_long_as_a_node_stays_where_it_is(
    start: Any, deaf: str, clients: NodeClients
) -> None:
    server = await start("n1")
    first = clients.get("n1", deaf)
    assert clients.get("n1", deaf) is first
    asking = asyncio.create_task(first.state(timeout_s=30, until_ready=True))
    await asyncio.sleep(0.1)  # not synchronisation: the call is to be under way
    second = clients.get("n1", server.address)
    assert (await second.state(until_ready=True)).node_id == "n1"
    assert not asking.done(), "a node that has moved ends no call on its old client ..."
    await clients.close_left()
    with pytest.raises(NodeUnreachableError):
        await asking  # ... until that is closed
    await clients.keep({"n1": server.address})
    assert clients.get("n1", server.address) is second
    await clients.keep({"n2": server.address})
    assert clients.get("n1", server.address) is not second
    with pytest.raises(NodeUnreachableError):
        await second.state()


async def test_calls_in_a_trace_are_part_of_it_and_a_subscription_is_not(
    start: Any, tmp_path: Path, clients: NodeClients
) -> None:
    server = await start("n1")
    writer = await Writer().open(server)
    client = clients.get("n1", server.address)
    telemetry.configure("test", span_dir=tmp_path / "telemetry")
    try:
        with telemetry.span("looking"):
            await client.state(writer.volume)
            following = client.subscribe(writer.volume, 0, 0)
            reading = asyncio.create_task(following.read())
            await asyncio.sleep(0.1)  # not synchronisation: it is to be under way
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await following.aclose()
    finally:
        telemetry.shutdown()
    (spans,) = read_traces(tmp_path / "telemetry").values()
    assert {span.name for span in spans} == {"looking", "StorageNode.State"}
