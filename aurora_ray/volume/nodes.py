"""The storage nodes of a volume by name, each with a client at the address where it answers now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aurora_ray.rpc.link import HOME
from aurora_ray.rpc.node_client import close_all
from aurora_ray.volume.volume_node import VolumeNode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from aurora_ray.rpc.link import Abroad
    from aurora_ray.volume.spec import NodeAddress

PEERS_TIMEOUT_S: Final = 2.0


class Nodes:
    """Owns the clients: they are made, replaced and closed here only."""

    def __init__(self, addresses: Iterable[NodeAddress], volume: bytes, abroad: Abroad | None = None) -> None:
        """`abroad`: how the nodes' fleet is reached, if it is not ours."""
        self._volume, self._abroad = volume, abroad or HOME
        self._clients = {node.node_id: VolumeNode(node, volume, self._abroad) for node in addresses}
        self._telling: set[asyncio.Task[None]] = set()

    def __getitem__(self, node_id: str) -> VolumeNode:
        return self._clients[node_id]

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._clients

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    @property
    def clients(self) -> Mapping[str, VolumeNode]:
        """Node id -> client; a live view."""
        return self._clients

    def az(self, node_id: str) -> str:
        """Where a node is."""
        return self._clients[node_id].node.az

    def update(self, addresses: Iterable[NodeAddress], keep: Collection[str]) -> tuple[set[str], list[VolumeNode]]:
        """Takes in new addresses and new nodes, and forgets nodes that are neither among them nor in `keep`.

        Gives the nodes whose client is another one now, and the clients that are no longer in use: close them when
        nothing runs on them any more.
        """
        known = {node.node_id: node for node in addresses}
        gone = self._clients.keys() - known.keys() - set(keep)
        unused = [self._clients.pop(node_id) for node_id in gone]
        changed = set()
        for node in known.values():
            old = self._clients.get(node.node_id)
            if old is not None and old.node == node:
                continue
            self._clients[node.node_id] = VolumeNode(node, self._volume, self._abroad)
            changed.add(node.node_id)
            if old is not None:
                unused.append(old)
        return changed, unused

    def tell_each_other(self) -> None:
        """Tells every node, in the background, where the others are. Best effort: they have the addresses of last time.

        Nodes that hang are not waited for.
        """
        telling = asyncio.create_task(self._tell(), name="tell the nodes of each other")
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        clients = list(self._clients.values())
        addresses = {client.node.node_id: client.node.address for client in clients}
        calls = (client.set_peers(addresses, PEERS_TIMEOUT_S) for client in clients)
        await asyncio.gather(*calls, return_exceptions=True)

    async def close(self) -> None:
        """Ends all calls."""
        for telling in tuple(self._telling):
            telling.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await close_all(self._clients.values())
