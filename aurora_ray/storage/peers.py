"""Channels to the other storage nodes, opened when needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aurora_ray.rpc.channel import open_channel
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub

if TYPE_CHECKING:
    import grpc.aio

    from aurora_ray.storage.node import Node


class Peers:
    """One channel an address; addresses that are no longer a peer's are closed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stub(self, node_id: str) -> StorageNodeStub | None:
        """A client of the peer; None if its address is not known."""
        address = self._node.peers.get(node_id)
        if address is None:
            return None
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(address)
        return StorageNodeStub(channel)  # type: ignore[no-untyped-call]

    async def prune(self) -> None:
        """Closes channels to addresses nobody has any more."""
        stale = set(self._channels) - set(self._node.peers.values())
        await asyncio.gather(*(self._channels.pop(address).close(None) for address in stale))

    async def close(self) -> None:
        """Closes all."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))
        self._channels.clear()
