"""Real storage servers in temporary directories, and a writer that needs no volume client."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc.aio
import zstandard

from aurora_ray.log import record as rec
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import Record, RecordBuilder
from aurora_ray.log.wire import join_append
from aurora_ray.rpc.admission import Caller
from aurora_ray.rpc.channel import door_of, open_channel
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.server.server import StorageServer
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from pathlib import Path

APPEND = "/aurora_ray.storage.v1.StorageNode/Append"
PAGE_SIZE = 1024
OWNER = b"o" * 16


class ServerHandle:
    """A storage server with its client."""

    at_append_port = True  # where redo is sent: as writers do, or at the node's address

    def __init__(self, config: StorageConfig, **kwargs: Any) -> None:
        self.config, self._kwargs = config, kwargs
        self.server = StorageServer(config, **kwargs)
        self.address = ""

    async def start(self) -> ServerHandle:
        self.address = await self.server.start()
        self.channel = open_channel(self.address, self.config.node_id)
        self.stub: Any = StorageNodeStub(self.channel)
        port = (await self.stub.AppendPort(pb.AppendPortRequest(), timeout=10)).port
        address = f"{self.config.host}:{port}" if self.at_append_port else self.address
        self.append_address, self.append_channel = address, grpc.aio.insecure_channel(address)
        challenge = self.channel.caller.challenge
        self.append_caller = Caller(self.config.node_id, door_of(address), challenge=challenge)
        return self

    def append(self) -> Any:
        """A stream of redo by gRPC's own library."""
        call = self.append_channel.stream_stream(APPEND)
        return call(metadata=(self.append_caller.prove(APPEND).entry,))

    async def stop(self) -> None:
        await self.channel.close()
        await self.append_channel.close()
        await self.server.stop(0.0)

    async def restart(self) -> None:
        await self.stop()
        await self.restart_stopped()

    async def restart_stopped(self) -> None:
        self.server = StorageServer(self.config, **self._kwargs)
        await self.start()

    def segment(self, writer: Writer, group: int = 0) -> Any:
        return self.server.node.segments[writer.volume, group]

    async def send(self, batches: list[bytes]) -> int:
        """One message on a fresh stream; the acknowledged LSN."""
        call = self.append()
        try:
            await call.write(join_append(batches))
            reply = await call.read()
            if not isinstance(reply, bytes):  # the end of the stream: its status says why
                await _raise_status(call)
            return pb.AppendReply.FromString(reply).acked_lsn
        finally:
            call.cancel()

    async def coalesce(self, writer: Writer, group: int = 0) -> bool:
        segment = self.segment(writer, group)
        async with segment.background:
            return await self.server.background.coalesce_once(segment)

    async def tend(self, writer: Writer, group: int = 0) -> None:
        """What the background does in a segment's turn when much log waits."""
        segment = self.segment(writer, group)
        segment.tail_bytes = self.config.layer_bytes
        await self.server.background._tend(self.server.node.volumes[writer.volume], segment)

    async def collect(self, writer: Writer, group: int = 0) -> None:
        volume = self.server.node.volumes[writer.volume]
        segment = self.segment(writer, group)
        async with segment.background:
            await self.server.background.collect_once(volume, segment)

    async def copied(self, times: int = 1) -> None:
        """Returns when so many segments have been copied here."""
        counters = self.server.node.counters
        await poll_until(lambda: counters["copied_segments"] == times, what=f"{times} segments are copied")

    async def digest(self, writer: Writer, lsn: int, *, group: int = 0, log_after_lsn: int = 0) -> tuple[bytes, ...]:
        """Of all content and log as of `lsn`."""
        request = pb.DigestRequest(
            volume=writer.volume, group=group, lsn=lsn, with_log=True, log_after_lsn=log_after_lsn
        )
        reply = await self.stub.Digest(request, timeout=10)
        return reply.digest, reply.log_digest

    async def pages(
        self,
        writer: Writer,
        lsn: int,
        file_id: int,
        *,
        first: int = 0,
        count: int,
        group: int = 0,
        required_scl: int = 0,
    ) -> list[Any]:
        request = pb.ReadPagesRequest(volume=writer.volume, lsn=lsn, required_scl=required_scl)
        request.ranges.add(group=group, file_id=file_id, first_page=first, count=count)
        reply = await self.stub.ReadPages(request, timeout=10)
        at, pages = 0, []
        for kind in reply.kinds:
            pages.append(reply.pages[at : at + PAGE_SIZE] if kind else None)
            at += PAGE_SIZE * kind
        assert at == len(reply.pages)
        return pages

    async def table(self, writer: Writer, lsn: int) -> FileTable:
        request = pb.ReadFileTableRequest(volume=writer.volume, lsn=lsn)
        data = b"".join([chunk.data async for chunk in self.stub.ReadFileTable(request, timeout=10)])
        return FileTable.unpack(zstandard.decompress(data))

    async def state(self, writer: Writer) -> Any:
        reply = await self.stub.State(pb.StateRequest(volume=writer.volume), timeout=10)
        return reply.volumes[0].segments[0]

    async def seal(self, writer: Writer, epoch: int, owner: bytes = OWNER) -> Any:
        return await self.stub.Seal(pb.SealRequest(volume=writer.volume, epoch=epoch, owner=owner), timeout=10)

    async def truncate(self, writer: Writer, history: list[tuple[int, int]], owner: bytes = OWNER) -> Any:
        request = pb.TruncateRequest(volume=writer.volume, epoch=history[-1][0], owner=owner, vdl=history[-1][1])
        for epoch, lsn in history:
            request.truncations.add(epoch=epoch, lsn=lsn)
        return await self.stub.Truncate(request, timeout=10)


async def _raise_status(call: Any) -> None:
    raise grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


class Writer:
    """Makes flushes and remembers every record, so that content at any LSN can be replayed the simple way."""

    def __init__(self, epoch: int = 1) -> None:
        self.volume = uuid.uuid4().bytes
        self.epoch, self.lsn, self.vdl = epoch, 0, 0
        self.prev: dict[int, int] = {}
        self.records: list[Record] = []
        self.ends: list[int] = [0]
        self.time_us = 1_000_000
        self.forks: list[Writer] = []  # that a test looks at with it

    async def open(self, *servers: ServerHandle, groups: tuple[int, ...] = (0,)) -> Writer:
        members = [server.config.node_id for server in servers]
        for server in servers:
            request = pb.CreateSegmentsRequest(volume=self.volume, page_size=PAGE_SIZE, groups=groups, members=members)
            await server.stub.CreateSegments(request, timeout=10)
            assert (await server.seal(self, self.epoch)).promised
            await server.truncate(self, [(self.epoch, self.lsn)])
        return self

    def flush(self, *records: Record, vdl: int | None = None) -> list[bytes]:
        """Encodes one flush; the VDL in it is the end of the flush before unless given."""
        builder = RecordBuilder(self.lsn)
        for record in records:
            self.records.append(replace(record, lsn=builder.add(record)))
        parts = builder.take()
        self.time_us += 1000
        batches = [
            encode_batch(
                group=part.group,
                volume=self.volume,
                epoch=self.epoch,
                prev_lsn=self.prev.get(part.group, 0),
                flush_start=self.lsn,
                flush_end=builder.end_lsn,
                time_us=self.time_us,
                vdl=self.lsn if vdl is None else vdl,
                record_count=part.record_count,
                groups=[p.group for p in parts],
                records=part.payload,
            )
            for part in parts
        ]
        for part in parts:
            self.prev[part.group] = builder.end_lsn
        self.lsn = builder.end_lsn
        self.ends.append(self.lsn)
        return batches

    def heartbeat(self, group: int = 0) -> bytes:
        """A batch without records that says: all so far is durable."""
        return encode_batch(
            group=group, volume=self.volume, epoch=self.epoch, prev_lsn=self.prev.get(group, 0), flush_start=self.lsn,
            flush_end=self.lsn, time_us=self.time_us, vdl=self.lsn, record_count=0, groups=[group], records=b"",
        )  # fmt: skip

    def fork(self, lsn: int) -> Writer:
        """The writer of a fork that ends at `lsn`, as its first recovery leaves it."""
        child = Writer(self.epoch + 2)
        child.lsn = child.vdl = child.prev[0] = lsn
        child.records = [record for record in self.records if record.lsn <= lsn]
        child.ends = [end for end in self.ends if end <= lsn]
        child.time_us = self.time_us
        return child

    # ---- the model

    def page_at(self, lsn: int, file_id: int, page: int) -> bytes | None:
        content: bytearray | None = None
        for record in self.records:
            if record.lsn > lsn:
                break
            if record.file_id != file_id:
                continue
            if record.type == RecordType.PAGE and record.page == page:
                content = bytearray(PAGE_SIZE) if content is None else content
                rec.apply_page(record, content)
            elif record.type in (RecordType.TRUNCATE, RecordType.DROP):
                new_size = int.from_bytes(record.body[:8], "little") if record.body else 0
                keep = new_size - page * PAGE_SIZE
                if keep <= 0:
                    content = None
                elif content is not None and keep < PAGE_SIZE:
                    content[keep:] = bytes(PAGE_SIZE - keep)
        return None if content is None else bytes(content)

    def table_at(self, lsn: int) -> FileTable:
        table = FileTable()
        for record in self.records:
            if record.lsn <= lsn and record.group == 0:
                table.apply(record)
        table.lsn = lsn
        return table


def config(path: Path, node_id: str = "n1", **settings: Any) -> StorageConfig:
    defaults: dict[str, Any] = {
        "layer_bytes": 1 << 40,  # tests coalesce by hand unless they say otherwise
        "idle_layer_bytes": 1 << 40,
        "gossip_interval_s": 3600.0,
        "background_interval_s": 3600.0,
        "lease_s_max": 0.0,
        "retention_s": 1e10,
        "disk_reserve_bytes": 0,
        "write_buffer_bytes": 1 << 20,
    }
    return StorageConfig(node_id=node_id, az="az1", data_dir=path / node_id, **(defaults | settings))


async def introduce(*servers: ServerHandle) -> None:
    """Tells the servers of each other."""
    addresses = {server.config.node_id: server.address for server in servers}
    for server in servers:
        await server.stub.SetPeers(pb.SetPeersRequest(addresses=addresses), timeout=10)
