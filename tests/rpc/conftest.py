"""What tests of streams share."""

from collections.abc import AsyncIterator

import pytest

from aurora_ray.rpc.partition import PARTY, Cut
from aurora_ray.rpc.stream_server import StreamServer
from tests.rpc.echo import DOOR, METHOD, Echo, doorkeeper


@pytest.fixture
async def server() -> AsyncIterator[tuple[StreamServer, int]]:
    server = StreamServer({METHOD: Echo}, "echo", doorkeeper())
    port = await server.start("127.0.0.1")
    server.door = DOOR
    yield server, port
    PARTY.set_cut(Cut())
    await server.stop()
