"""A volume's parent: its place in what is stored and said; what an earlier version stored is read.

`data/segments-format-1.tar.xz`: the directory of a node with one volume, as the versions of these two commits wrote it:
three epochs with a flush each, the first two in layers.
"""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest

from aurora_ray.errors import ConfigurationError, MalformedError, UsageError
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.segment_rules import Membership, SegmentEpochs, Truncation
from aurora_ray.storage.disk.keys import META_KEY, content_of, guarded
from aurora_ray.storage.segment.meta import AS_CONFIGURED, Layer, Retention, SegmentMeta
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
from tests.storage.harness import OWNER, PAGE_SIZE, ServerHandle, Writer, config

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
            assert stored_fields(server, OLD_VOLUME)[0] == 3
            await server.restart()
    finally:
        await server.stop()


def stored_fields(server: ServerHandle, volume: bytes) -> list[Any]:
    packed = server.server.node.segments[volume, 0].store.get(META_KEY)
    return list(msgpack.unpackb(content_of(META_KEY, packed)))


def test_metadata_keeps_lineage_and_reads_what_has_none() -> None:
    history = (Truncation(2, 4800, first=True), Truncation(3, 5000))
    epochs = SegmentEpochs(3, OWNER, 3, history, Membership(1, ("n1",)))
    meta = SegmentMeta(PAGE_SIZE, epochs, 5000, 4800, (Layer(4900, 1, 2),), CHILD, 7, True, Retention(3600, 1 << 30))
    assert SegmentMeta.unpack(meta.pack()) == meta
    before = msgpack.unpackb(content_of(META_KEY, meta.pack()))[:-3]
    second = SegmentMeta.unpack(guarded(META_KEY, msgpack.packb([2, *before[1:]])))
    assert second == replace(meta, floor_time_us=0, unswept=False, retention=AS_CONFIGURED)
    old = [PAGE_SIZE, (1, ["n1"], []), 3, OWNER, 3, [(2, 4800)], 5000, 4800, [(4900, 1, 2)]]
    read = SegmentMeta.unpack(guarded(META_KEY, msgpack.packb(old)))
    assert (read.lineage, read.page_size, read.epochs.truncations) == (ROOT, PAGE_SIZE, (Truncation(2, 4800),))
    fields = msgpack.unpackb(content_of(META_KEY, meta.pack()))
    with pytest.raises(ConfigurationError, match="format 4"):
        SegmentMeta.unpack(guarded(META_KEY, msgpack.packb([4, *fields[1:], "more"])))
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
