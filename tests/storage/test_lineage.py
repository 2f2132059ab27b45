"""A volume's parent: its place in what is stored and said, and the refusal of what is not built yet.

`data/segments-format-1.tar.xz`: the directory of a node with one volume, as the versions of these two commits wrote it:
three epochs with a flush each, the first two in layers.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgpack
import pytest

from aurora_ray.errors import ConfigurationError, MalformedError, UnsupportedLineageError, UsageError
from aurora_ray.log import record as rec
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.segment_rules import Membership, SegmentEpochs, Truncation
from aurora_ray.storage.disk.keys import META_KEY, content_of, guarded
from aurora_ray.storage.segment.meta import Layer, SegmentMeta
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.node_client import NodeClient
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
from aurora_ray.volume.write.membership import create_segments
from tests.storage.harness import OWNER, PAGE_SIZE, ServerHandle, Writer, config, introduce

if TYPE_CHECKING:
    from collections.abc import Callable

FIXTURE = Path(__file__).parent / "data" / "segments-format-1.tar.xz"
OLD_VOLUME, OLD_END = b"fixture of a vol", 512
CHILD = Lineage(b"p" * 16, 4800)


@pytest.mark.parametrize("commit", ["68ea128", "4e5b76f"])
async def test_a_directory_of_an_earlier_version_opens_and_is_brought_up_to_date(tmp_path: Path, commit: str) -> None:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / commit).rename(tmp_path / "n1")
    server = await ServerHandle(config(tmp_path, "n1")).start()
    try:
        for _ in range(2):
            writer = Writer()
            writer.volume = OLD_VOLUME
            state = await server.state(writer)
            assert (state.scl, state.installed_epoch, len(state.truncations)) == (OLD_END, 3, 3)
            first, second, third, last = await server.pages(writer, OLD_END, 7, count=4)
            for epoch, page in enumerate((first, second, third), start=1):
                assert page.startswith(b"page %d of epoch %d" % (epoch - 1, epoch))
            assert last[16:23] == b"epoch 1"
            server.segment(writer).commit()
            assert stored_fields(server, OLD_VOLUME)[0] == 2
            await server.restart()
    finally:
        await server.stop()


def stored_fields(server: ServerHandle, volume: bytes) -> list[Any]:
    packed = server.server.node.segments[volume, 0].store.get(META_KEY)
    return list(msgpack.unpackb(content_of(META_KEY, packed)))


def test_metadata_keeps_lineage_and_reads_what_has_none() -> None:
    history = (Truncation(2, 4800, first=True), Truncation(3, 5000))
    epochs = SegmentEpochs(3, OWNER, 3, history, Membership(1, ("n1",)))
    meta = SegmentMeta(PAGE_SIZE, epochs, 5000, 4800, (Layer(4900, 1, 2),), CHILD)
    assert SegmentMeta.unpack(meta.pack()) == meta
    old = [PAGE_SIZE, (1, ["n1"], []), 3, OWNER, 3, [(2, 4800)], 5000, 4800, [(4900, 1, 2)]]
    read = SegmentMeta.unpack(guarded(META_KEY, msgpack.packb(old)))
    assert (read.lineage, read.page_size, read.epochs.truncations) == (ROOT, PAGE_SIZE, (Truncation(2, 4800),))
    fields = msgpack.unpackb(content_of(META_KEY, meta.pack()))
    with pytest.raises(ConfigurationError, match="format 3"):
        SegmentMeta.unpack(guarded(META_KEY, msgpack.packb([3, *fields[1:], "more"])))
    with pytest.raises(MalformedError):
        SegmentMeta.unpack(guarded(META_KEY, msgpack.packb(fields[:-1])))


def test_a_specification_keeps_lineage_and_reads_what_has_none() -> None:
    spec = VolumeSpec(UUID(int=1), 8192, 1 << 30, (GroupPlacement(0, ("n1",)),), CHILD)
    assert VolumeSpec.from_dict(spec.to_dict()) == spec
    before = {key: value for key, value in spec.to_dict().items() if key != "lineage"}
    assert VolumeSpec.from_dict(before).lineage == ROOT
    for wrong in (Lineage(b"short", 1), Lineage(b"", 1), Lineage(UUID(int=1).bytes, 1)):
        with pytest.raises(UsageError):
            VolumeSpec(UUID(int=1), 8192, 1 << 30, (GroupPlacement(0, ("n1",)),), wrong)


async def test_a_volume_with_a_parent_is_refused_and_nothing_is_made(start: Callable[..., Any]) -> None:
    server = await start()
    client = NodeClient(NodeAddress("n1", "a", server.address), b"c" * 16)
    try:
        with pytest.raises(UnsupportedLineageError, match="without one"):
            await client.create_segments(PAGE_SIZE, [0], ["n1"], 10, CHILD)
        with pytest.raises(UsageError, match="own parent"):
            await client.create_segments(PAGE_SIZE, [0], ["n1"], 10, Lineage(b"c" * 16, 7))
    finally:
        await client.close()
    assert not server.server.node.volumes
    assert not list((server.config.data_dir / "volumes").iterdir())
    spec = VolumeSpec(UUID(int=1), 8192, 1 << 30, (GroupPlacement(0, ("n1",)),), CHILD)
    with pytest.raises(UnsupportedLineageError):
        await create_segments(spec, spec.groups, {}, 1)


async def made_below_the_door(*servers: ServerHandle) -> Writer:
    """Empty copies of a child, as a node will make them."""
    writer = Writer()
    writer.lsn = writer.prev[0] = CHILD.origin_lsn
    for server in servers:
        node = server.server.node
        volume = node.volumes.setdefault(writer.volume, node._volume_at(writer.volume))
        volume.path.mkdir(parents=True)
        volume.create(0, PAGE_SIZE, ["n1", "n2", "n3"], CHILD)
        node.index(volume)
        reply = await server.seal(writer, 1)
        assert [(state.scl, state.vdl, state.floor_lsn) for state in reply.segments] == [(CHILD.origin_lsn,) * 3]
        await server.truncate(writer, [(1, CHILD.origin_lsn)])
    return writer


async def test_an_empty_child_is_empty_at_its_origin_and_goes_on_from_there(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await made_below_the_door(server)
    volume = server.server.node.volumes[writer.volume]
    assert volume.is_empty
    end = await server.send(writer.flush(rec.page_full(1, 0, b"x")))
    assert (await server.state(writer)).scl == end > CHILD.origin_lsn
    assert not volume.is_empty
    await server.restart()
    assert (await server.state(writer)).scl == end
    (state,) = (await server.stub.State(pb.StateRequest(volume=writer.volume))).volumes
    assert (state.lineage.parent, state.lineage.origin_lsn) == CHILD
    server.segment(writer).learn_vdl(end)
    assert not await server.coalesce(writer)
    with pytest.raises(UnsupportedLineageError, match="read through"):
        await server.pages(writer, end, 1, count=1)


@pytest.mark.allowed_logs("damaged here", "is getting them back", "lost")
async def test_a_lost_copy_of_a_child_comes_back_with_its_lineage(start: Callable[..., Any]) -> None:
    servers = [await start(name) for name in ("n1", "n2", "n3")]
    writer = await made_below_the_door(*servers)
    batches = writer.flush(rec.page_full(1, 0, b"x"))
    for server in servers:
        await server.send(batches)
    await introduce(*servers)
    node = servers[0].server.node
    node.lose(node.segments[writer.volume, 0], "for a test")
    await servers[0].copied()
    assert node.segments[writer.volume, 0].meta.lineage == CHILD
    assert (await servers[0].state(writer)).scl == writer.lsn
