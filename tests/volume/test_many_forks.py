"""Fifty forks of one volume: each its own, gone in any order; what one costs, and that the next costs no more."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from aurora_ray.volume.read.pages import PageRange
from tests.support.timing import scaled
from tests.volume.cluster import pages, running
from tests.volume.test_fork_chain import PAGES, RANGES, clone_of, drop, filled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aurora_ray.volume.write.volume import Volume

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
CLONES = 50
IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of all that there is: bytes on the disks, each file once whatever its names, and of memory; threads; descriptors;
    CPU seconds a second while nothing is asked."""

    disk: int
    memory: int
    threads: int
    descriptors: int
    cpu: float

    @classmethod
    async def now(cls, directory: Path) -> Cost:
        """As it is."""
        began = time.process_time(), time.monotonic()
        await asyncio.sleep(IDLE_S)  # not synchronisation: what is measured is what goes on meanwhile
        cpu = (time.process_time() - began[0]) / (time.monotonic() - began[1])
        threads, descriptors = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        return cls(disk_bytes(directory), memory_bytes(), threads, descriptors, cpu)


def memory_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(directory: Path) -> int:
    found = {}
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


async def first_page(volume: Volume) -> bytes:
    (run,) = await volume.read_pages([PageRange(0, 1, 0, 1)], timeout_s=scaled(20))
    return run.pages.rstrip(b"\0")


async def test_fifty_clones_of_one_volume(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    async with running(tmp_path, gossip_interval_s=0.5) as cluster:  # as a node has it that nobody configured
        parent = await filled(cluster)
        whole = await parent.read_pages(RANGES)
        before = await Cost.now(tmp_path)
        clones, took_s = [], []
        for _ in range(CLONES):
            began_s = time.monotonic()
            clones.append(await clone_of(cluster, parent))
            took_s.append(time.monotonic() - began_s)
        after = await Cost.now(tmp_path)
        first, last = statistics.median(took_s[:10]), statistics.median(took_s[-10:])
        told = (
            f"{(after.disk - before.disk) / CLONES / 1e3:.0f} kB on six disks, "
            f"{(after.memory - before.memory) / CLONES / 1e6:.1f} MB and "
            f"{(after.descriptors - before.descriptors) / CLONES:.0f} descriptors in six nodes and its writer, "
            f"{after.threads - before.threads} threads more for {CLONES}, "
            f"{(after.cpu - before.cpu) / CLONES * 1e3:.2f} ms of CPU a second; "
            f"forked and opened in {first:.2f} s (the first ten) and {last:.2f} s (the last)"
        )
        record_property("an idle clone", told)
        logging.getLogger(__name__).info("an idle clone: %s", told)
        assert after.disk - before.disk < CLONES * before.disk / 4, "what is shared is not copied"
        assert (after.memory - before.memory) / CLONES < 32 << 20
        assert after.threads - before.threads < CLONES / 2, "no thread belongs to a clone"
        assert last < 4 * first + 1, "a clone costs the next one nothing"
        for number, clone in enumerate(clones):
            assert await clone.read_pages(RANGES, timeout_s=scaled(20)) == whole
            await clone.append(pages((0, b"%d" % number)), timeout_s=scaled(30))
        assert await parent.read_pages(RANGES) == whole
        order = random.Random(2)
        await drop(cluster, parent)
        left = list(enumerate(clones))
        while len(left) > 1:
            await drop(cluster, left.pop(order.randrange(len(left)))[1])
            number, clone = order.choice(left)
            assert await first_page(clone) == b"%d" % number
        assert (await left[0][1].read_pages([PageRange(0, 1, 1, PAGES - 1)]))[0].kinds == b"\1" * (PAGES - 1)
