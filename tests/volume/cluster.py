"""Six real storage nodes in one process, for tests: stop one, start it again, look into it."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aurora_ray.log.batch import encode_batch
from aurora_ray.log.flush import Flush
from aurora_ray.log.record import Record, RecordBuilder, page_full
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.server.server import StorageServer
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
from aurora_ray.volume.write.volume import Volume
from tests.support.secret import given_secret
from tests.support.timing import scaled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from aurora_ray.storage.segment.segment import Segment

PAGE = 8192
NODES = ("a1", "a2", "b1", "b2", "c1", "c2")


class Cluster:
    """Nodes a1 … c2 in three zones, and others on demand; the groups of the volume `spec` live on a1 … c2."""

    def __init__(self, directory: Path, *, groups: int = 1, page_size: int = PAGE, **settings: Any) -> None:
        self.nodes: dict[str, NodeAddress] = {node: NodeAddress(node, node[0], "") for node in NODES}
        self.servers: dict[str, StorageServer] = {}
        placements = tuple(GroupPlacement(group, NODES) for group in range(groups))
        self.spec = VolumeSpec(uuid.uuid4(), page_size, 10 << 30, placements)
        given_secret()
        self._directory = directory
        self._settings: dict[str, Any] = {"gossip_interval_s": 0.05, **settings}
        self.volumes: list[Volume] = []

    async def start(self, *nodes: str) -> None:
        """Starts these nodes (default: all)."""
        for node in nodes or NODES:
            self.nodes.setdefault(node, NodeAddress(node, node[0], ""))
            config = StorageConfig(
                node_id=node, az=node[0], data_dir=self._directory / node, disk_reserve_bytes=0, **self._settings
            )
            server = StorageServer(config)
            self.nodes[node] = replace(self.nodes[node], address=await server.start())
            self.servers[node] = server

    async def stop(self, *nodes: str) -> None:
        """Stops these nodes at once; their data stays."""
        for node in nodes:
            await self.servers.pop(node).stop(0)

    async def create(self) -> None:
        """Creates the volume."""
        await Volume.create(self.spec, self.addresses, timeout_s=scaled(10))

    async def open(self, **options: Any) -> Volume:
        """Opens the volume for writing; it is closed at the end of the test."""
        options.setdefault("timeout_s", scaled(20))
        volume = await Volume.open(self.spec, self.addresses, **options)
        self.volumes.append(volume)
        return volume

    async def close(self) -> None:
        """Ends everything."""
        for volume in self.volumes:
            await volume.close()
        await self.stop(*self.servers)

    @property
    def addresses(self) -> list[NodeAddress]:
        return list(self.nodes.values())

    def segment(self, node: str, group: int = 0) -> Segment:
        return self.servers[node].node.segments[self.spec.volume_id.bytes, group]

    def log(self, node: str, group: int = 0) -> list[tuple[int, bytes]]:
        """(flush end, batch) of what a node's log holds."""
        batches = self.segment(node, group).store.log_batches(0, (1 << 64) - 1)
        return [(int.from_bytes(batch[56:64], "little"), batch) for batch in batches]


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[Cluster]:
    """A cluster with its volume created."""
    cluster = Cluster(directory, **options)
    try:
        await cluster.start()
        await cluster.create()
        yield cluster
    finally:
        await cluster.close()


def pages(*contents: tuple[int, bytes], file_id: int = 1, group: int = 0) -> list[Record]:
    """Full images of (page number, content)."""
    return [page_full(file_id, page, content, group=group) for page, content in contents]


def encoded_flush(volume: Volume, records: Iterable[Record], *, epoch: int | None = None) -> Flush:
    """What `RedoWriter.submit` takes, as the driver would make it."""
    builder = RecordBuilder(volume.tail_lsn)
    for record in records:
        builder.add(record)
    start, end = builder.start_lsn, builder.end_lsn
    parts = builder.take()
    groups = [part.group for part in parts]
    batches = {
        part.group: encode_batch(
            group=part.group,
            volume=volume.spec.volume_id.bytes,
            epoch=volume.epoch if epoch is None else epoch,
            prev_lsn=volume.redo.end.tail(part.group),
            flush_start=start,
            flush_end=end,
            time_us=0,
            vdl=volume.vdl,
            record_count=part.record_count,
            groups=groups,
            records=part.payload,
        )
        for part in parts
    }
    return Flush(start, end, batches)
