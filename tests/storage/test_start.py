"""A server that is told to stop while it starts."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from aurora_ray.storage.disk.datadir import DataDir
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


def test_a_copy_of_a_nodes_directory_does_not_know_the_firsts_peers(tmp_path: Path) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    DataDir(first, "n1").release()
    (first / "port").write_text("4711")
    (first / "peers.json").write_text('{"n2": "127.0.0.1:4712"}')
    shutil.copytree(first, copy)
    moved = first.rename(tmp_path / "moved")
    for path, known in ((moved, True), (copy, False)):
        DataDir(path, "n1").release()
        assert [(path / name).exists() for name in ("port", "peers.json")] == [known, known]
