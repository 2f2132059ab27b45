"""The control plane's calls to storage nodes, each with a deadline, each error one of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aurora_ray.errors import AuroraError, StorageError, UnknownVolumeError
from aurora_ray.rpc.channel import open_channel
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub
from aurora_ray.volume.fork import LEASE_S
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
from aurora_ray.volume.volume_node import decode_places, fork_request
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from aurora_ray.control.decide.reconcile import SegmentOrder
    from aurora_ray.rpc.calls import Channel
    from aurora_ray.volume.origin import GroupPlace, Target

CALL_TIMEOUT_S = 10.0
FORK_TIMEOUT_S = 20.0
LOCATE_TIMEOUT_S = 2.0


class NodeCallError(StorageError):
    """A storage node did not do what it was asked; it may be on its way down or up."""

    retryable = True


class NodeClients:
    """A channel a storage node, kept open while its address stays the same."""

    def __init__(self) -> None:
        self._channels: dict[str, tuple[str, Channel]] = {}

    async def stub(self, node_id: str, address: str) -> Any:
        """The node's stub. (Generated stubs serve both kinds of channel, which their types cannot say.)"""
        known = self._channels.get(node_id)
        if known is None or known[0] != address:
            if known is not None:
                await known[1].close()
            known = self._channels[node_id] = (address, open_channel(address, node_id))
        return StorageNodeStub(known[1])  # type: ignore[no-untyped-call]

    async def forget(self, node_id: str) -> None:
        """A node ended: the next one at the same address gets a connection of its own, without the old one's delays."""
        known = self._channels.pop(node_id, None)
        if known is not None:
            await known[1].close()

    async def close(self) -> None:
        """Closes all channels."""
        channels, self._channels = self._channels, {}
        for _, channel in channels.values():
            await channel.close()

    async def set_peers(self, node_id: str, address: str, addresses: Mapping[str, str]) -> None:
        """Tells a node where all nodes answer."""
        async with _call(node_id, "learn its peers"):
            stub = await self.stub(node_id, address)
            await stub.SetPeers(pb.SetPeersRequest(addresses=dict(addresses)), timeout=CALL_TIMEOUT_S)

    async def create_segments(self, node_id: str, address: str, order: SegmentOrder) -> None:
        """Has a node make segments that it shall have; those it has stay as they are."""
        request = pb.CreateSegmentsRequest(
            volume=order.volume_id.bytes,
            page_size=order.page_size,
            groups=order.groups,
            members=order.members,
            lineage=pb.Lineage(**order.origin.lineage._asdict()) if order.origin is not None else None,
        )
        async with _call(node_id, "create segments"):
            await (await self.stub(node_id, address)).CreateSegments(request, timeout=CALL_TIMEOUT_S)

    async def fork(self, node_id: str, address: str, order: SegmentOrder) -> None:
        """Has a node make segments of a fork out of its parent's; those it has stay as they are."""
        assert order.origin is not None  # noqa: S101 - else there is nothing to fork
        stub = await self.stub(node_id, address)
        for group in order.groups:
            placement = GroupPlacement(group, order.members)
            request = fork_request(
                order.volume_id.bytes, order.origin.parent.bytes, order.origin.point, placement, FORK_TIMEOUT_S
            )
            async with _call(node_id, "fork segments"):
                await stub.Fork(request, timeout=FORK_TIMEOUT_S)

    async def locate(self, node_id: str, address: str, volume_id: UUID, target: Target) -> list[GroupPlace]:
        """Where a node's logs of a volume stand at a target."""
        async with _call(node_id, "locate a moment"):
            stub = await self.stub(node_id, address)
            request = pb.LocateRequest(volume=volume_id.bytes, lsn=target.lsn, time_us=target.time_us)
            return decode_places(await stub.Locate(request, timeout=LOCATE_TIMEOUT_S))

    async def recover(self, volume: VolumeSpec, nodes: Sequence[NodeAddress], timeout_s: float) -> int:
        """Opens a volume that nobody serves and closes it again, as its next writer would; its end. Raises
        QuorumLostError."""
        opened = await Volume.open(volume, nodes, timeout_s=timeout_s)
        try:
            return opened.vdl
        finally:
            await opened.close()

    async def hold(self, node_id: str, address: str, volume_id: UUID, lsn: int) -> None:
        """Has a node keep history from an LSN on until it was forked, for a minute at most."""
        request = pb.SetReadPointRequest(
            volume=volume_id.bytes, holder=f"fork at {lsn}", lsn=lsn, lease_ms=int(LEASE_S * 1000)
        )
        async with _call(node_id, "hold history"):
            await (await self.stub(node_id, address)).SetReadPoint(request, timeout=LOCATE_TIMEOUT_S)

    async def keep_history(self, node_id: str, address: str, volume_id: UUID, seconds: int, log_bytes: int) -> None:
        """Tells a node for how long to keep history of a volume; one that it does not have is fine."""
        request = pb.SetRetentionRequest(
            volume=volume_id.bytes, retention=pb.Retention(seconds=seconds, log_bytes=log_bytes)
        )
        async with _call(node_id, "keep history", ignored=UnknownVolumeError):
            await (await self.stub(node_id, address)).SetRetention(request, timeout=CALL_TIMEOUT_S)

    async def drop_volume(self, node_id: str, address: str, volume_id: UUID, reason: str = "") -> None:
        """Has a node put a volume into its graveyard; one it does not know is gone already."""
        async with _call(node_id, "drop a volume", ignored=UnknownVolumeError):
            stub = await self.stub(node_id, address)
            await stub.DropVolume(pb.DropVolumeRequest(volume=volume_id.bytes, reason=reason), timeout=CALL_TIMEOUT_S)

    async def purge_volume(self, node_id: str, address: str, volume_id: UUID) -> None:
        """Has a node destroy what its graveyard holds of a volume."""
        async with _call(node_id, "purge its graveyard"):
            stub = await self.stub(node_id, address)
            request = pb.ListGraveyardRequest(volume=volume_id.bytes)
            graves = (await stub.ListGraveyard(request, timeout=CALL_TIMEOUT_S)).graves
            if graves:
                names = [grave.name for grave in graves]
                await stub.PurgeGraveyard(pb.PurgeGraveyardRequest(graves=names), timeout=CALL_TIMEOUT_S)

    async def state(
        self, node_id: str, address: str, volume_id: UUID | None = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> pb.StateReply:
        """What a node has, of one volume or of all."""
        request = pb.StateRequest(volume=volume_id.bytes if volume_id is not None else b"")
        # A node that has just said that it serves may not be reached at the first try.
        async with _call(node_id, "tell its state"):
            stub = await self.stub(node_id, address)
            reply: pb.StateReply = await stub.State(request, timeout=timeout_s, wait_for_ready=True)
        return reply


@asynccontextmanager
async def _call(node_id: str, what: str, ignored: type[AuroraError] | None = None) -> AsyncIterator[None]:
    try:
        yield
    except AuroraError as error:
        if ignored is not None and isinstance(error, ignored):
            return
        raise NodeCallError(f"Storage node {node_id} could not {what}: {error}.") from error
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        # gRPC says so when the channel is closed under a call; nobody wants the caller to end.
        raise NodeCallError(f"Storage node {node_id} could not {what}: its connection was closed.") from error


def is_cancelled() -> bool:
    """Whether the present task itself was asked to end, and not only something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def segments_of(reply: pb.StateReply) -> frozenset[tuple[UUID, int]]:
    """The segments that a node has."""
    return frozenset((UUID(bytes=v.volume), segment.group) for v in reply.volumes for segment in v.segments)


def lost_segments_of(reply: pb.StateReply) -> frozenset[tuple[UUID, int]]:
    """The segments that a node has lost and is getting back from its peers."""
    return frozenset((UUID(bytes=v.volume), group) for v in reply.volumes for group in v.lost_groups)
