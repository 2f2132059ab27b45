"""Several storage nodes in one process: each is itself, with its own directory, addresses and door, and goes alone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_ray.errors import AuroraError, ConfigurationError
from aurora_ray.rpc.admission import ImpostorError
from aurora_ray.rpc.node_client import NodeClient
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.server.servers import Servers
from tests.storage.harness import config

pytestmark = pytest.mark.allowed_logs("due to server stop")


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    made = Servers()
    yield made
    for node_id in ("a-1", "a-2"):
        await made.stop(node_id, 0.0, destroy=False)


def of(tmp_path: Path, node_id: str) -> StorageConfig:
    return config(tmp_path, node_id)


async def told(node_id: str, address: str) -> str:
    client = NodeClient(node_id, address)
    try:
        return (await client.state(until_ready=True)).node_id
    finally:
        await client.close()


async def test_each_is_itself_and_ends_alone(tmp_path: Path, servers: Servers) -> None:
    one, other = await asyncio.gather(*(servers.start(of(tmp_path, node_id)) for node_id in ("a-1", "a-2")))
    assert one != other
    assert (servers.address("a-1"), servers.address("a-2"), servers.address("a-3")) == (one, other, "")
    assert await servers.start(of(tmp_path, "a-1")) == one, "it serves already"
    assert (await told("a-1", one), await told("a-2", other)) == ("a-1", "a-2")
    with pytest.raises(ImpostorError):
        await told("a-1", other)
    watch = asyncio.create_task(servers.wait_stopped("a-1"))
    await asyncio.sleep(0)
    assert not watch.done()
    assert await servers.stop("a-1", 0.0, destroy=True) == 1
    await asyncio.wait_for(watch, 5)
    assert not (tmp_path / "a-1").exists()
    assert await told("a-2", other) == "a-2"
    assert await servers.start(of(tmp_path, "a-1"))
    assert await servers.stop("a-2", 0.0, destroy=False) == 1
    assert (tmp_path / "a-2").exists()
    assert await servers.stop("a-1", 0.0, destroy=False) == 0
    await asyncio.wait_for(servers.wait_stopped("a-1"), 5)


async def test_one_that_does_not_start_leaves_the_others_alone(tmp_path: Path, servers: Servers) -> None:
    one = await servers.start(of(tmp_path, "a-1"))
    with pytest.raises(ConfigurationError, match=r"another process serves|belongs to storage node a-1"):
        await servers.start(replace(of(tmp_path, "a-1"), node_id="a-2"))
    assert servers.address("a-2") == ""
    assert await told("a-1", one) == "a-1"
    await servers.start(of(tmp_path, "a-2"))
    with pytest.raises(AuroraError):
        await told("a-2", one)
