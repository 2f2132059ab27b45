"""The storage nodes of one process: one as a rule, all of an AZ in a small fleet.

Each has a server of its own, and with it an identity, a directory, two ports and a challenge. What is the process's is
theirs together: its event loop, its memory, the party that it calls itself, and its end.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from aurora_ray.storage.server.server import StorageServer

if TYPE_CHECKING:
    from aurora_ray.storage.config import StorageConfig


class Servers:
    """By node id. Belongs to one event loop; what is done with one node is done in turn, others go on beside it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._servers: dict[str, tuple[StorageServer, StorageConfig]] = {}
        self._ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self, config: StorageConfig) -> str:
        """Opens a node's segments and serves, unless it does already; its address. Raises ConfigurationError."""
        node_id = config.node_id
        async with self._turns[node_id]:
            if node_id not in self._servers:
                await asyncio.to_thread(config.data_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
                server = StorageServer(replace(config, host=self._host))
                await server.start()
                self._servers[node_id] = server, config
                self._ended[node_id].clear()
            return self._servers[node_id][0].address

    def address(self, node_id: str) -> str:
        """Where a node serves; "" if it does not."""
        served = self._servers.get(node_id)
        return served[0].address if served is not None else ""

    async def wait_stopped(self, node_id: str) -> None:
        """Waits, without a limit, until a node that serves is stopped; returns at once if none does."""
        if node_id in self._servers:
            await self._ended[node_id].wait()

    async def stop(self, node_id: str, grace_s: float, *, destroy: bool) -> int:
        """Ends a node; with `destroy` its directory goes too, and no other. How many are left."""
        async with self._turns[node_id]:
            served = self._servers.get(node_id)
            if served is not None:
                server, config = served
                await server.stop(grace_s)
                if destroy:
                    await asyncio.to_thread(shutil.rmtree, config.data_dir, ignore_errors=True)
                # Not before: while it is counted, nobody ends the process for being of no use any more.
                del self._servers[node_id]
                self._ended[node_id].set()
            return len(self._servers)
