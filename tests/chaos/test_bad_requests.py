"""Garbage sent to a storage node at work: an error for each, nothing changes, and the writer notices nothing."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
import pytest

from aurora_ray.log.record import page_full
from aurora_ray.log.wire import join_append
from aurora_ray.rpc.admission import Caller
from aurora_ray.rpc.channel import MESSAGE_BYTES_MAX, open_channel
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub
from aurora_ray.volume.spec import NodeAddress
from aurora_ray.volume.write.volume import Volume
from tests.chaos.agreement import check_agreement
from tests.chaos.conftest import MakeStack
from tests.chaos.test_return import file_records, write
from tests.support.polling import poll_until
from tests.support.stack import Stack
from tests.support.stack_view import counters_of, state_of
from tests.volume.cluster import encoded_flush

SERVICE = "/aurora_ray.storage.v1.StorageNode/"
_METHODS = pb.DESCRIPTOR.services_by_name["StorageNode"].methods
STREAMS = tuple(method.name for method in _METHODS if method.server_streaming)
UNARY = tuple(method.name for method in _METHODS if not method.server_streaming)
ASK_ONLY = {"State", "ListGraveyard", "AppendPort"}  # without an argument they mean everything, and change nothing
CALL_TIMEOUT_S = 10.0
UNLIMITED = (("grpc.max_send_message_length", -1),)


async def callers(node: NodeAddress) -> tuple[Caller, Caller]:
    """Who proves that calls come from the fleet: at the node's address, and where it takes redo."""
    async with open_channel(node.address, node.node_id) as channel:
        stub: Any = StorageNodeStub(channel)  # type: ignore[no-untyped-call]
        port = str((await stub.AppendPort(pb.AppendPortRequest(), timeout=CALL_TIMEOUT_S)).port)
        return channel.caller, Caller(node.node_id, port, challenge=channel.caller.challenge)


@asynccontextmanager
async def raw_channel(address: str) -> AsyncIterator[Any]:
    """Bytes in, bytes out, of any size."""
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        yield channel


async def refused(call: Any) -> grpc.StatusCode:
    """Drains a call that is to fail; with what."""
    try:
        while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    code: grpc.StatusCode = await call.code()
    return code


@pytest.fixture
async def stack(make_stack: MakeStack) -> Stack:
    stack = make_stack()
    stack.start_nodes()
    await stack.create_volume()
    return stack


async def test_garbage_changes_nothing(stack: Stack) -> None:
    choose = random.Random(1)
    volume = await Volume.open(stack.spec, stack.addresses, timeout_s=20)
    await volume.append(file_records())
    await write(volume, choose, 3)
    writing = asyncio.create_task(write(volume, choose, 100))
    node = stack.nodes["a1"].address
    before = await state_of(node, stack.spec)
    assert before is not None

    await asyncio.to_thread(raw_bytes, node.address, choose)
    caller, at_append_port = await callers(node)
    await asyncio.to_thread(raw_bytes, f"127.0.0.1:{at_append_port.door}", choose)
    async with raw_channel(node.address) as channel:
        for name in UNARY:
            for length in (1, 17, 300):
                content = choose.randbytes(length)
                proof = (caller.prove(SERVICE + name, content).entry,)
                call = channel.unary_unary(SERVICE + name)(content, timeout=CALL_TIMEOUT_S, metadata=proof)
                # A few random bytes may be a message with fields that nobody knows: all its own are absent then.
                assert await call.code() is not grpc.StatusCode.OK or name in ASK_ONLY
        for name in STREAMS:
            content = b"\x0a" + choose.randbytes(200)
            proof = (caller.prove(SERVICE + name, content).entry,)
            call = channel.stream_stream(SERVICE + name)(timeout=CALL_TIMEOUT_S, metadata=proof)
            await call.write(content)
            assert await refused(call) is not grpc.StatusCode.OK
        proof = (caller.prove(SERVICE + "Append").entry,)
        call = channel.stream_stream(SERVICE + "Append")(timeout=CALL_TIMEOUT_S, metadata=proof)
        await call.write(bytes(MESSAGE_BYTES_MAX + 1))
        assert await refused(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        proof = (caller.prove(SERVICE + "Nonsense").entry,)
        unknown = channel.unary_unary(SERVICE + "Nonsense")(b"", timeout=CALL_TIMEOUT_S, metadata=proof)
        assert await unknown.code() is grpc.StatusCode.UNIMPLEMENTED

    lsn = await writing
    after = await state_of(node, stack.spec)
    assert after is not None
    assert (after.promised_epoch, after.installed_epoch) == (before.promised_epoch, before.installed_epoch)
    assert volume.stats()["reconnects"] == 0
    await check_agreement(stack.spec, stack.addresses, choose, timeout_s=20)
    assert volume.vdl == lsn
    await volume.close()


def raw_bytes(address: str, choose: random.Random) -> None:
    """What a port scanner, a browser and a broken client send."""
    host, _, port = address.rpartition(":")
    for content in (
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        choose.randbytes(10_000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        # Whoever is not spoken to properly may hang up first.
        with (
            suppress(ConnectionError),
            socket.create_connection((host, int(port)), timeout=CALL_TIMEOUT_S) as connection,
        ):
            connection.sendall(content)
            with suppress(OSError):  # ENOTCONN
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


async def has(stack: Stack, node: NodeAddress, lsn: int) -> None:
    """Waits until the node has the log up to there."""

    async def there() -> bool:
        state = await state_of(node, stack.spec)
        return state is not None and state.scl >= lsn

    await poll_until(there, 20, interval_s=0.05, what=f"{node.node_id} is complete up to {lsn}")


async def test_mutated_batches_are_refused(stack: Stack) -> None:
    """Any single flipped bit, any cut, any other epoch: refused and counted."""
    choose = random.Random(2)
    volume = await Volume.open(stack.spec, stack.addresses, timeout_s=20)
    await volume.append(file_records())
    lsn = await write(volume, choose, 1)
    node = stack.nodes["b2"].address
    await has(stack, node, lsn)  # it may be one of those that get flushes later
    (batch,) = encoded_flush(volume, [page_full(1, 3, b"never")]).batches.values()
    (stale,) = encoded_flush(volume, [page_full(1, 3, b"never")], epoch=volume.epoch + 1).batches.values()
    (fenced,) = encoded_flush(volume, [page_full(1, 3, b"never")], epoch=volume.epoch - 1).batches.values()
    flips = [choose.randrange(8 * len(batch)) for _ in range(60)]
    bad = [batch[: bit // 8] + bytes([batch[bit // 8] ^ 1 << bit % 8]) + batch[bit // 8 + 1 :] for bit in flips]
    bad += [batch[: choose.randrange(len(batch))] for _ in range(10)] + [stale, fenced]
    codes = []
    _, caller = await callers(node)
    async with raw_channel(f"127.0.0.1:{caller.door}") as channel:
        for content in bad:
            proof = (caller.prove(SERVICE + "Append").entry,)
            call = channel.stream_stream(SERVICE + "Append")(timeout=CALL_TIMEOUT_S, metadata=proof)
            await call.write(join_append([content]))
            codes.append(await refused(call))
    assert grpc.StatusCode.OK not in codes
    assert codes[-2:] == [grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION]
    assert grpc.StatusCode.UNKNOWN not in codes, "something was not foreseen"
    counters = await counters_of(node)
    assert sum(count for name, count in counters.items() if name.startswith("refused_")) == len(bad)
    state = await state_of(node, stack.spec)
    assert isinstance(state, pb.SegmentState)
    assert (state.scl, state.highest_lsn) == (lsn, lsn)
    assert await write(volume, choose, 3) > lsn
    await volume.close()
