"""What a node of the stack says of itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aurora_ray.errors import AuroraError
from aurora_ray.rpc.channel import open_channel
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub
from aurora_ray.volume.spec import NodeAddress, VolumeSpec

CALL_TIMEOUT_S = 10.0


@asynccontextmanager
async def stub_of(node: NodeAddress) -> AsyncIterator[Any]:
    """The node's calls as they come out of protobuf."""
    channel: Any = open_channel(node.address, node.node_id)
    try:
        yield StorageNodeStub(channel)  # type: ignore[no-untyped-call]
    finally:
        await channel.close()


async def state_of(node: NodeAddress, spec: VolumeSpec) -> pb.SegmentState | None:
    """Its segment of group 0 of a volume; None if it has none, or does not answer."""
    async with stub_of(node) as stub:
        try:
            reply = await stub.State(pb.StateRequest(volume=spec.volume_id.bytes), timeout=CALL_TIMEOUT_S)
        except AuroraError:
            return None
        return reply.volumes[0].segments[0] if reply.volumes and reply.volumes[0].segments else None


async def counters_of(node: NodeAddress) -> dict[str, int]:
    """What it counted since its start."""
    async with stub_of(node) as stub:
        reply = await stub.State(pb.StateRequest(), timeout=CALL_TIMEOUT_S)
        return dict(reply.counters)
