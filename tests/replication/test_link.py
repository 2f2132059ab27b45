"""A replicator over a line to another region: late by what the line takes, and never wrong, whatever happens to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import StorageError
from aurora_ray.replication.replicator import Phase
from aurora_ray.rpc.admission import OURS
from aurora_ray.rpc.link import Abroad, Line, Link
from aurora_ray.rpc.secret_file import ensure_secret
from aurora_ray.volume.nodes import Nodes
from aurora_ray.volume.write.copies import create_segments
from aurora_ray.volume.write.volume import Volume
from tests.replication.regions import Copy, Scribe, caught_up, log_of, replicating, two_regions
from tests.support.polling import poll_until
from tests.support.stack import StorageProcess
from tests.support.timing import scaled
from tests.volume.cluster import NODES, Cluster, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.ports import PortAllocator

pytestmark = pytest.mark.allowed_logs("due to server stop")


async def test_a_line_that_is_slow_lossy_and_cut(tmp_path: Path) -> None:
    link = Link.of(Line(delay_s=0.04, jitter_s=0.01, bytes_per_s=1e6, stall_rate=50, stall_s=0.2))
    async with two_regions(tmp_path) as (primary, copy):
        scribe = Scribe(await primary.cluster.open(), seed=1)
        primary.abroad = Abroad(link=link)
        async with replicating(primary, copy) as replicator:
            # What was written before it follows is no measure of the line.
            await poll_until(lambda: replicator.status().phase is Phase.FOLLOWING, scaled(20), what="it follows")
            await caught_up(replicator, await scribe.write(30))
            assert replicator.status().lag.p50_ms >= 40
            crossed = link.back.nbytes
            assert crossed >= replicator.status().log_bytes > 0
            for cut in (link.cut, link.out.cut, link.back.cut):  # both ways, and either one alone
                cut()
                lsn = await scribe.write(10)
                await poll_until(lambda: replicator.status().lag.lag_ms > 2600, scaled(30), what="silence is lag")
                assert replicator.status().lsn < lsn or cut == link.out.cut, "an open stream needs no way out"
                link.heal()
                await caught_up(replicator, lsn)
            primary.abroad = Abroad()
            assert await log_of(copy, 0, lsn) == await log_of(primary, 0, lsn)


class Foreign(Cluster):
    """Nodes of another fleet: processes of their own, with a secret of their own."""

    async def foreign(self, directory: Path, ports: PortAllocator) -> tuple[list[StorageProcess], Abroad]:
        path = directory / "their-secret"
        abroad = Abroad(ensure_secret(path))
        nodes = [StorageProcess(node, directory, ports.allocate(), {"secret-file": path}) for node in NODES]
        for process in nodes:
            process.begin()
        for process in nodes:
            process.wait_serving()
            self.nodes[process.node_id] = process.address
        return nodes, abroad


async def test_each_fleet_is_proved_to_by_its_own_secret(tmp_path: Path, ports: PortAllocator) -> None:
    (tmp_path / "theirs").mkdir()
    theirs = Foreign(tmp_path / "theirs")
    processes, abroad = await theirs.foreign(tmp_path / "theirs", ports)
    try:
        assert abroad.secret != OURS.secret
        nodes = Nodes(theirs.addresses, theirs.spec.volume_id.bytes, abroad)
        await create_segments(theirs.spec, theirs.spec.groups, nodes.clients, scaled(20))
        await nodes.close()
        strangers = Nodes(theirs.addresses, theirs.spec.volume_id.bytes)
        with pytest.raises(StorageError):
            await strangers["a1"].state(scaled(5))
        await strangers.close()
        volume = await Volume.open(theirs.spec, theirs.addresses, timeout_s=scaled(20), abroad=abroad)
        async with running(tmp_path / "ours") as ours:
            primary, copy = Copy(theirs), Copy(ours)
            primary.abroad = abroad
            async with replicating(primary, copy) as replicator:
                scribe = Scribe(volume, seed=2)
                await caught_up(replicator, await scribe.write(20))
                processes[0].kill()
                await caught_up(replicator, await scribe.write(5))
        await volume.close()
    finally:
        for process in processes:
            process.kill()
