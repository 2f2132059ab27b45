"""A long chain of forks: each with all that came before it, at a bounded cost, while the one before is gone."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import QuorumLostError
from aurora_ray.volume.fork import fork
from aurora_ray.volume.origin import Target
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.write.volume import Volume
from tests.support.timing import scaled
from tests.volume.cluster import NODES, PAGE, Cluster, pages, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
DEPTH, PAGES = 20, 64
RANGES = [PageRange(0, 1, 0, PAGES)]


async def clone_of(cluster: Cluster, parent: Volume) -> Volume:
    """Nodes that do not answer in time are asked again, as by a control plane: hundreds of segments share a process."""
    async with asyncio.timeout(scaled(60)):
        while True:
            try:
                spec, _ = await fork(
                    parent.spec, uuid.uuid4(), cluster.addresses, Target(), written_lsn=parent.vdl, timeout_s=scaled(60)
                )
                break
            except QuorumLostError:
                await asyncio.sleep(0.1)  # not synchronisation: a pause between tries
    child = await Volume.open(spec, cluster.addresses, timeout_s=scaled(60))
    cluster.volumes.append(child)
    return child


async def filled(cluster: Cluster) -> Volume:
    """With incompressible pages, all of them in files by now."""
    volume, noise = await cluster.open(), random.Random(1)
    for _ in range(4):
        await volume.append(pages(*((page, noise.randbytes(PAGE)) for page in range(PAGES))), timeout_s=scaled(30))
    return volume


async def drop(cluster: Cluster, volume: Volume) -> None:
    await volume.close()
    cluster.volumes.remove(volume)
    for server in cluster.servers.values():
        node = server.node
        grave = node.drop_volume(volume.spec.volume_id.bytes, "a test")
        await node.graveyard.purge([grave])


async def test_a_chain_of_twenty_is_read_like_one(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        link, files = await filled(cluster), []
        for depth in range(DEPTH):
            child = await clone_of(cluster, link)
            await drop(cluster, link)
            link = child
            await link.append(pages((depth, b"%d" % depth)), timeout_s=scaled(30))
            volume = tmp_path / NODES[0] / "volumes" / str(link.spec.volume_id)
            files.append(sum(path.suffix == ".sst" for path in volume.rglob("*")))
        (run,) = await link.read_pages(RANGES)
        assert run.kinds == b"\1" * PAGES
        for depth in range(DEPTH):
            assert run.pages[depth * PAGE : (depth + 1) * PAGE].rstrip(b"\0") == b"%d" % depth
        assert files[0] > 0
        # A fork's memory buffers become a file with each fork, until they are merged.
        assert max(files) <= files[0] + 2 * DEPTH, files
