"""Changed requests to a storage node that serves: proved, so that they reach what is behind the door."""

import asyncio
import random
import tempfile
import time
import uuid
from pathlib import Path

from aurora_ray.errors import AuroraError
from aurora_ray.rpc.calls import Channel
from aurora_ray.rpc.channel import open_channel
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.server.server import SERVICE_NAME, StorageServer
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.fuzz.mutation import mutated
from tests.fuzz.run import FuzzError

CALL_TIMEOUT_S = 5.0
PAGE_BYTES = 1024
UNARY = tuple(
    method.name
    for method in pb.DESCRIPTOR.services_by_name["StorageNode"].methods
    if not method.client_streaming and not method.server_streaming
)
STREAMS = tuple(
    method.name
    for method in pb.DESCRIPTOR.services_by_name["StorageNode"].methods
    if method.server_streaming and not method.client_streaming
)


def fuzz_calls(seconds: float, seed: int) -> tuple[int, int]:
    """How many calls were made, and how many were served. Raises FuzzError."""
    return asyncio.run(_run(seconds, seed))


async def _run(seconds: float, seed: int) -> tuple[int, int]:
    choose = random.Random(f"calls {seed}")
    volume = uuid.UUID(int=1).bytes
    with tempfile.TemporaryDirectory() as directory:
        config = StorageConfig(node_id="n1", az="a", data_dir=Path(directory) / "n1", disk_reserve_bytes=0)
        server = StorageServer(config)
        address = await server.start()
        try:
            async with open_channel(address, "n1") as channel:
                return await _call_all(channel, choose, volume, seconds)
        finally:
            await server.stop(0)


async def _call_all(channel: Channel, choose: random.Random, volume: bytes, seconds: float) -> tuple[int, int]:
    create = pb.CreateSegmentsRequest(volume=volume, page_size=PAGE_BYTES, groups=[0], members=["n1"])
    made = served = 0
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        if made % 50 == 0:  # it may have been dropped
            method = f"/{SERVICE_NAME}/CreateSegments"
            await channel.unary_unary(method)(create.SerializeToString(), timeout=CALL_TIMEOUT_S)
        name = choose.choice((*UNARY, *STREAMS))
        content = mutated(choose, _sound(choose, name, volume))
        method, began_s = f"/{SERVICE_NAME}/{name}", time.monotonic()
        try:
            if name in UNARY:
                await channel.unary_unary(method)(content, timeout=CALL_TIMEOUT_S)
            else:
                replies = channel.unary_stream(method)(content, timeout=0.2 if name == "Subscribe" else CALL_TIMEOUT_S)
                async for _ in replies:
                    pass
            served += 1
        except AuroraError as error:
            if "Unexpected <class" in str(error):  # gRPC's words for an exception that a handler did not foresee
                raise FuzzError(f"{name}: {error} for {content.hex()}") from error
        made += 1
        if time.monotonic() - began_s > CALL_TIMEOUT_S - 1:
            raise FuzzError(f"{name}: no answer in time for {content.hex()}")
    return made, served


def _sound(choose: random.Random, name: str, volume: bytes) -> bytes:
    method = pb.DESCRIPTOR.services_by_name["StorageNode"].methods_by_name[name]
    request = getattr(pb, method.input_type.name)()
    values = {
        "volume": volume,
        "group": 0,
        "lsn": choose.choice((0, 100, (1 << 64) - 1)),
        "page_size": PAGE_BYTES,
        "epoch": choose.choice((0, 1, 2, (1 << 32) - 1)),
        "owner": b"o" * 16,
        "timeout_ms": choose.choice((0, 50)),
        "holder": "x",
        "lease_ms": 10,
        "up_to_lsn": choose.choice((0, 100, (1 << 64) - 1)),
    }
    for field, value in values.items():
        if field in request.DESCRIPTOR.fields_by_name:
            try:
                setattr(request, field, value)
            except (AttributeError, TypeError, ValueError):
                continue  # of another kind in this request
    if name == "ReadPages":
        request.ranges.add(group=0, file_id=1, first_page=0, count=choose.choice((1, 10, 1 << 31)))
    if name == "Truncate":
        request.truncations.add(epoch=request.epoch, lsn=0)
    return bytes(request.SerializeToString())
