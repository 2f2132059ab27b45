"""A server that is told to stop while it starts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aurora_ray.storage.server.server import StorageServer
from tests.storage.harness import ServerHandle, config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("steps", range(1, 5))
async def test_a_start_that_is_cancelled_leaves_the_directory_free(tmp_path: Path, steps: int) -> None:
    server = StorageServer(config(tmp_path, "n1"))
    start = asyncio.create_task(server.start())
    for _ in range(steps):
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    again = await ServerHandle(config(tmp_path, "n1")).start()
    await again.stop()
