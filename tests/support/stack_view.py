"""What a node of the stack says of itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aurora_ray.errors import AuroraError
from aurora_ray.rpc.node_client import NodeClient
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.spec import NodeAddress, VolumeSpec


@asynccontextmanager
async def client_of(node: NodeAddress) -> AsyncIterator[NodeClient]:
    """The node's calls as they come out of protobuf."""
    client = NodeClient(node.node_id, node.address)
    try:
        yield client
    finally:
        await client.close()


async def state_of(node: NodeAddress, spec: VolumeSpec) -> pb.SegmentState | None:
    """Its segment of group 0 of a volume; None if it has none, or does not answer."""
    async with client_of(node) as client:
        try:
            reply = await client.state(spec.volume_id.bytes)
        except AuroraError:
            return None
        return reply.volumes[0].segments[0] if reply.volumes and reply.volumes[0].segments else None


async def counters_of(node: NodeAddress) -> dict[str, int]:
    """What it counted since its start."""
    async with client_of(node) as client:
        reply = await client.state()
        return dict(reply.counters)
