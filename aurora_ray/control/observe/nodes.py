"""What the control plane asks of storage nodes, in its own words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from aurora_ray.errors import AuroraError, StorageError, UnknownVolumeError
from aurora_ray.rpc.node_client import CHANGE_S, FORK_S, NodeClients
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume import unserved
from aurora_ray.volume.fork import LEASE_S
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
from aurora_ray.volume.volume_node import decode_places, fork_request
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from aurora_ray.control.decide.reconcile import SegmentOrder
    from aurora_ray.rpc.node_client import NodeClient
    from aurora_ray.volume.origin import GroupPlace, Target


class NodeCallError(StorageError):
    """A storage node did not do what it was asked; it may be on its way down or up."""

    retryable = True


class NodeCalls:
    """What the control plane asks of storage nodes, over one client a node. Raises NodeCallError."""

    def __init__(self) -> None:
        self._clients = NodeClients()

    async def forget(self, node_id: str) -> None:
        """A node ended: the next one at the same address gets a connection of its own, without the old one's delays."""
        await self._clients.forget(node_id)

    async def close(self) -> None:
        """Ends all calls."""
        await self._clients.close()

    async def set_peers(self, node_id: str, address: str, addresses: Mapping[str, str]) -> None:
        """Tells a node where all nodes answer."""
        async with self._calling(node_id, address, "learn its peers") as client:
            await client.set_peers(addresses)

    async def create_segments(self, node_id: str, address: str, order: SegmentOrder) -> None:
        """Has a node make segments that it shall have; those it has stay as they are."""
        request = pb.CreateSegmentsRequest(
            volume=order.volume_id.bytes,
            page_size=order.page_size,
            groups=order.groups,
            members=order.members,
            lineage=pb.Lineage(**order.origin.lineage._asdict()) if order.origin is not None else None,
        )
        async with self._calling(node_id, address, "create segments") as client:
            await client.create_segments(request)

    async def fork(self, node_id: str, address: str, order: SegmentOrder) -> None:
        """Has a node make segments of a fork out of its parent's; those it has stay as they are."""
        assert order.origin is not None  # noqa: S101 - else there is nothing to fork
        for group in order.groups:
            placement = GroupPlacement(group, order.members)
            request = fork_request(
                order.volume_id.bytes, order.origin.parent.bytes, order.origin.point, placement, FORK_S
            )
            async with self._calling(node_id, address, "fork segments") as client:
                await client.fork(request)

    async def locate(self, node_id: str, address: str, volume_id: UUID, target: Target) -> list[GroupPlace]:
        """Where a node's logs of a volume stand at a target."""
        request = pb.LocateRequest(volume=volume_id.bytes, lsn=target.lsn, time_us=target.time_us)
        async with self._calling(node_id, address, "locate a moment") as client:
            return decode_places(await client.locate(request))

    async def recover(self, volume: VolumeSpec, nodes: Sequence[NodeAddress], timeout_s: float) -> int:
        """Opens a volume that nobody serves and closes it again, as its next writer would; its end. Raises
        QuorumLostError."""
        opened = await Volume.open(volume, nodes, timeout_s=timeout_s)
        try:
            return opened.vdl
        finally:
            await opened.close()

    async def change_members(
        self,
        volume: VolumeSpec,
        nodes: Sequence[NodeAddress],
        wanted: GroupPlacement,
        filled: str,
        timeout_s: float,
    ) -> tuple[GroupPlacement, ...]:
        """One step of a change of members of a volume that nobody serves; see volume/unserved.py."""
        return await unserved.change_members(volume, nodes, wanted, filled, timeout_s)

    async def hold(self, node_id: str, address: str, volume_id: UUID, lsn: int) -> None:
        """Has a node keep history from an LSN on until it was forked, for a minute at most."""
        async with self._calling(node_id, address, "hold history") as client:
            await client.set_read_point(volume_id.bytes, f"fork at {lsn}", lsn, LEASE_S)

    async def keep_history(self, node_id: str, address: str, volume_id: UUID, seconds: int, log_bytes: int) -> None:
        """Tells a node for how long to keep history of a volume; one that it does not have is fine."""
        retention = pb.Retention(seconds=seconds, log_bytes=log_bytes)
        async with self._calling(node_id, address, "keep history", ignored=UnknownVolumeError) as client:
            await client.set_retention(pb.SetRetentionRequest(volume=volume_id.bytes, retention=retention))

    async def drop_volume(self, node_id: str, address: str, volume_id: UUID, reason: str = "") -> None:
        """Has a node put a volume into its graveyard; one it does not know is gone already."""
        async with self._calling(node_id, address, "drop a volume", ignored=UnknownVolumeError) as client:
            await client.drop_volume(pb.DropVolumeRequest(volume=volume_id.bytes, reason=reason))

    async def purge_volume(self, node_id: str, address: str, volume_id: UUID) -> None:
        """Has a node destroy what its graveyard holds of a volume."""
        async with self._calling(node_id, address, "purge its graveyard") as client:
            graves = (await client.list_graveyard(pb.ListGraveyardRequest(volume=volume_id.bytes))).graves
            if graves:
                await client.purge_graveyard(pb.PurgeGraveyardRequest(graves=[grave.name for grave in graves]))

    async def state(
        self, node_id: str, address: str, volume_id: UUID | None = None, timeout_s: float = CHANGE_S
    ) -> pb.StateReply:
        """What a node has, of one volume or of all."""
        volume = volume_id.bytes if volume_id is not None else b""
        async with self._calling(node_id, address, "tell its state") as client:
            # A node that has just said that it serves may not be reached at the first try.
            return await client.state(volume, timeout_s, until_ready=True)

    @asynccontextmanager
    async def _calling(
        self, node_id: str, address: str, what: str, ignored: type[AuroraError] | None = None
    ) -> AsyncIterator[NodeClient]:
        """The node's client. Whatever a call raises, it is tried again: the next look may find another state."""
        try:
            client = self._clients.get(node_id, address)
            await self._clients.close_left()
            yield client
        except AuroraError as error:
            if ignored is None or not isinstance(error, ignored):
                raise NodeCallError(f"Storage node {node_id} could not {what}: {error}.") from error


def segments_of(reply: pb.StateReply) -> frozenset[tuple[UUID, int]]:
    """The segments that a node has."""
    return frozenset((UUID(bytes=v.volume), segment.group) for v in reply.volumes for segment in v.segments)


def lost_segments_of(reply: pb.StateReply) -> frozenset[tuple[UUID, int]]:
    """The segments that a node has lost and is getting back from its peers."""
    return frozenset((UUID(bytes=v.volume), group) for v in reply.volumes for group in v.lost_groups)
