"""The other storage nodes: channels, opened when needed, and what they say of a segment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from aurora_ray.errors import AuroraError
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.rpc.channel import open_channel
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub

if TYPE_CHECKING:
    from aurora_ray.rpc.calls import Channel
    from aurora_ray.storage.node.node import Node


class Peer(NamedTuple):
    """A node that holds a copy of a segment, and what it says of it."""

    node_id: str
    stub: Any
    state: pb.SegmentState
    page_size: int
    lineage: Lineage = ROOT


class Peers:
    """One channel a peer and address; those that are no longer in use are closed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._channels: dict[tuple[str, str], Channel] = {}

    def stub(self, node_id: str) -> StorageNodeStub | None:
        """A client of the peer; None if its address is not known."""
        address = self._node.peers.get(node_id)
        if address is None:
            return None
        channel = self._channels.get((node_id, address))
        if channel is None:
            channel = self._channels[node_id, address] = open_channel(address, node_id)
        return StorageNodeStub(channel)  # type: ignore[no-untyped-call]

    async def ask(self, volume: bytes, group: int) -> list[Peer]:
        """The peers that answer and hold a copy of the group, members only where they know who is one."""
        found = await asyncio.gather(*(self._ask_one(node_id, volume, group) for node_id in sorted(self._node.peers)))
        answers = [peer for peer in found if peer is not None]
        newest = max(
            (peer.state for peer in answers),
            key=lambda state: (state.installed_epoch, state.members_number),
            default=pb.SegmentState(),
        )
        members = {*newest.members, *newest.next_members}
        return [peer for peer in answers if peer.node_id in members or not members]

    async def _ask_one(self, node_id: str, volume: bytes, group: int) -> Peer | None:
        stub: Any = self.stub(node_id)
        if stub is None:
            return None
        try:
            reply = await stub.State(pb.StateRequest(volume=volume), timeout=self._node.config.peer_timeout_s)
        except AuroraError:
            return None
        for held in reply.volumes:
            for state in held.segments:
                if state.group == group:
                    lineage = Lineage(held.lineage.parent, held.lineage.origin_lsn)
                    return Peer(node_id, stub, state, held.page_size, lineage)
        return None

    async def prune(self) -> None:
        """Closes channels to addresses nobody has any more."""
        stale = set(self._channels) - set(self._node.peers.items())
        await asyncio.gather(*(self._channels.pop(peer).close() for peer in stale))

    async def close(self) -> None:
        """Closes all."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        self._channels.clear()
