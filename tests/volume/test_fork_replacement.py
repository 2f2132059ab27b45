"""Storage nodes are replaced and a disk is lost, with forks about: clones whose parent is gone, a past that a rewind
left and that nobody serves, and what was forked of that. Each shows at each LSN what its own records make of it."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from aurora_ray.volume.fork import fork
from aurora_ray.volume.origin import Target
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.unserved import change_members
from aurora_ray.volume.write.volume import Volume
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import NODES, PAGE, Cluster, pages, running

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.volume.spec import VolumeSpec

FILES, PAGES = {0: 1, 1: 2}, 4  # a file in each group
RANGES = [PageRange(group, file_id, 0, PAGES) for group, file_id in FILES.items()]
NEXT = tuple({"b1": "b3", "c2": "c3"}.get(node, node) for node in NODES)
Content = dict[tuple[int, int], bytes]


@dataclass
class Known:
    """A volume, and what it shows at the end of each of its flushes."""

    spec: VolumeSpec
    shows: dict[int, Content] = field(default_factory=dict)

    async def write(self, volume: Volume, number: int) -> None:
        """Some pages, in one group or both."""
        content = dict(self.shows[max(self.shows)]) if self.shows else {}
        changes = {(0, number % PAGES): b"%d of %d " % (number, volume.epoch) * 30}
        if number % 3:
            changes[1, number * 7 % PAGES] = b"%d in the other " % number * 20
        content |= changes
        records = [
            record
            for (group, page), data in changes.items()
            for record in pages((page, data), file_id=FILES[group], group=group)
        ]
        self.shows[await volume.append(records, timeout_s=scaled(30))] = content

    async def forked(self, cluster: Cluster, lsn: int) -> Known:
        """A fork at an LSN that it shows."""
        spec, point = await fork(self.spec, uuid.uuid4(), cluster.addresses, Target(lsn), written_lsn=max(self.shows))
        assert point.lsn == lsn
        return Known(spec, {end: content for end, content in self.shows.items() if end <= lsn})

    async def check(self, volume: Volume) -> None:
        """It shows what it shall, everywhere."""
        for lsn, content in self.shows.items():
            for wanted, run in zip(RANGES, await volume.read_pages(RANGES, lsn, scaled(20)), strict=True):
                expected = [content.get((wanted.group, page)) for page in range(PAGES)]
                assert run.kinds == bytes(page is not None for page in expected), (self.spec.volume_id, lsn)
                assert run.pages == b"".join(page.ljust(PAGE, b"\0") for page in expected if page), lsn


async def opened(cluster: Cluster, known: Known) -> Volume:
    volume = await Volume.open(known.spec, cluster.addresses, timeout_s=scaled(30))
    cluster.volumes.append(volume)
    return volume


async def ended(cluster: Cluster, volume: Volume) -> None:
    await volume.close()
    cluster.volumes.remove(volume)


async def replaced(cluster: Cluster, directory: Path, old: str, new: str, served: list[tuple[Known, Volume]]) -> None:
    """A node is lost with its disk; another takes its copies, those of volumes with a writer by that."""
    await cluster.stop(old)
    shutil.rmtree(directory / old)
    cluster.nodes.pop(old)
    await cluster.start(new)
    for known, volume in served:
        await volume.update_nodes(cluster.addresses)
        for placement in known.spec.groups:
            for step, filled in steps(placement, old, new):
                await volume.members.try_step(step, filled)
        known.spec = volume.spec


def steps(placement: GroupPlacement, old: str, new: str) -> list[tuple[GroupPlacement, str]]:
    following = tuple(new if node == old else node for node in placement.node_ids)
    group = placement.group
    return [(GroupPlacement(group, placement.node_ids, following), ""), (GroupPlacement(group, following), new)]


async def moved(cluster: Cluster, known: Known, old: str, new: str) -> None:
    """The same of a volume that nobody serves, as a control plane does it: each step may be asked for twice."""
    for placement in known.spec.groups:
        for step, filled in steps(placement, old, new):
            for _ in range(2):
                groups = await change_members(known.spec, cluster.addresses, step, filled, scaled(30))
                assert step in groups
            known.spec = known.spec.with_placements(groups)


@pytest.mark.allowed_logs("its files were removed")
async def test_forks_are_as_they_were_when_nodes_were_replaced_and_a_disk_was_lost(tmp_path: Path) -> None:
    async with running(tmp_path, groups=2) as cluster:
        root = Known(cluster.spec)
        volume = await cluster.open()
        for number in range(6):
            await root.write(volume, number)
        clone = await root.forked(cluster, max(root.shows))
        await ended(cluster, volume)
        for server in cluster.servers.values():  # the clone's parent is gone for good
            await server.node.graveyard.purge([server.node.drop_volume(root.spec.volume_id.bytes, "a test")])

        was = await opened(cluster, clone)
        for number in range(6, 12):
            await clone.write(was, number)
        rewound = await clone.forked(cluster, sorted(clone.shows)[7])  # in its place; what it was stays, unserved
        await ended(cluster, was)
        present = await opened(cluster, rewound)
        for number in range(20, 24):
            await rewound.write(present, number)

        await replaced(cluster, tmp_path, "b1", "b3", [(rewound, present)])
        await moved(cluster, clone, "b1", "b3")
        again = await clone.forked(cluster, max(clone.shows))  # the rewind is undone
        undone = await opened(cluster, again)
        for number in range(30, 33):
            await again.write(undone, number)
        await replaced(cluster, tmp_path, "c2", "c3", [(rewound, present), (again, undone)])
        await moved(cluster, clone, "c2", "c3")
        all_of_them = [clone, rewound, again]
        assert [known.spec.node_ids for known in all_of_them] == [NEXT] * 3

        shutil.rmtree(tmp_path / "a2" / "volumes" / str(clone.spec.volume_id))
        node = cluster.servers["a2"].node
        node.check_files()
        held = node.volumes[clone.spec.volume_id.bytes]
        await poll_until(lambda: not held.lost and len(held.segments) == 2, scaled(30), what="a2 is whole again")

        # Of four copies three are new.
        await cluster.stop("a1", "b2")
        old = await opened(cluster, clone)
        for known, shown in ((clone, old), (rewound, present), (again, undone)):
            await known.check(shown)
            await known.write(shown, 40)
            await known.check(shown)
