"""Whether the copies of a running fleet's volume are the same, asked of the storage nodes themselves."""

import asyncio
from typing import Any
from uuid import UUID

from aurora_ray.rpc.admission import Secret
from aurora_ray.rpc.link import Abroad
from aurora_ray.rpc.node_client import NodeClient, close_all
from aurora_ray.storage.v1 import storage_pb2 as pb

CALL_TIMEOUT_S = 30.0


def digests(status: dict[str, Any], secret: Secret, group: int = 0) -> dict[str, tuple[Any, ...]]:
    """Storage node -> what it says of its copy as of the status's VDL: of the content, and of the log that all keep."""
    return asyncio.run(_digests(status, secret, group))


async def _digests(status: dict[str, Any], secret: Secret, group: int) -> dict[str, tuple[Any, ...]]:
    volume = UUID(status["volume"]["id"]).bytes
    reach = Abroad(secret)
    clients = {node["id"]: NodeClient(node["id"], node["address"], reach) for node in status["storage_nodes"]}
    try:
        floors = [await _floor(client, volume, group) for client in clients.values()]
        request = pb.DigestRequest(
            volume=volume, group=group, lsn=status["vdl"], with_log=True, log_after_lsn=max(floors)
        )
        replies = {node: await client.digest(request) for node, client in clients.items()}
        return {node: (r.digest, r.pages, r.log_digest, r.log_batches) for node, r in replies.items()}
    finally:
        await close_all(clients.values())


async def _floor(client: NodeClient, volume: bytes, group: int) -> int:
    reply = await client.state(volume, CALL_TIMEOUT_S, until_ready=True)
    return max(int(s.floor_lsn) for v in reply.volumes for s in v.segments if s.group == group)
