"""Whether the copies of a running fleet's volume are the same, asked of the storage nodes themselves."""

import asyncio
from typing import Any
from uuid import UUID

from aurora_ray.rpc.admission import Secret
from aurora_ray.rpc.channel import open_channel
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub

CALL_TIMEOUT_S = 30.0


def digests(status: dict[str, Any], secret: Secret, group: int = 0) -> dict[str, tuple[Any, ...]]:
    """Storage node -> what it says of its copy as of the status's VDL: of the content, and of the log that all keep."""
    return asyncio.run(_digests(status, secret, group))


async def _digests(status: dict[str, Any], secret: Secret, group: int) -> dict[str, tuple[Any, ...]]:
    volume = UUID(status["volume"]["id"]).bytes
    channels = {node["id"]: open_channel(node["address"], node["id"], secret) for node in status["storage_nodes"]}
    try:
        stubs: dict[str, Any] = {n: StorageNodeStub(channel) for n, channel in channels.items()}  # type: ignore[no-untyped-call]
        floors = [await _floor(stub, volume, group) for stub in stubs.values()]
        request = pb.DigestRequest(
            volume=volume, group=group, lsn=status["vdl"], with_log=True, log_after_lsn=max(floors)
        )
        replies = {node: await stub.Digest(request, timeout=CALL_TIMEOUT_S) for node, stub in stubs.items()}
        return {node: (r.digest, r.pages, r.log_digest, r.log_batches) for node, r in replies.items()}
    finally:
        await asyncio.gather(*(channel.close() for channel in channels.values()))


async def _floor(stub: Any, volume: bytes, group: int) -> int:
    reply = await stub.State(pb.StateRequest(volume=volume), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
    return max(int(s.floor_lsn) for v in reply.volumes for s in v.segments if s.group == group)
