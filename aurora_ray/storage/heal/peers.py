"""The other storage nodes: clients, made when needed, and what they say of a segment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from aurora_ray.errors import AuroraError
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.rpc.node_client import NodeClient, NodeClients
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from aurora_ray.storage.node.node import Node


class Peer(NamedTuple):
    """A node that holds a copy of a segment, and what it says of it."""

    node_id: str
    client: NodeClient
    state: pb.SegmentState
    page_size: int
    lineage: Lineage = ROOT


class Peers:
    """One client a peer; those that are no longer in use are closed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clients = NodeClients()

    def client(self, node_id: str) -> NodeClient | None:
        """Of the peer; None if its address is not known."""
        address = self._node.peers.get(node_id)
        return None if address is None else self._clients.get(node_id, address)

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
        client = self.client(node_id)
        if client is None:
            return None
        try:
            reply = await client.state(volume, self._node.config.peer_timeout_s)
        except AuroraError:
            return None
        for held in reply.volumes:
            for state in held.segments:
                if state.group == group:
                    lineage = Lineage(held.lineage.parent, held.lineage.origin_lsn)
                    return Peer(node_id, client, state, held.page_size, lineage)
        return None

    async def prune(self) -> None:
        """Closes clients of addresses nobody has any more."""
        await self._clients.keep(self._node.peers)

    async def close(self) -> None:
        """Closes all."""
        await self._clients.close()
