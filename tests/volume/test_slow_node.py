"""A storage node that stands still (SIGSTOP): commits and reads do not wait for it, and it catches up by itself."""

from __future__ import annotations

import statistics
import time
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from aurora_ray.log.record import page_full
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
from aurora_ray.volume.write.volume import Volume
from tests.support.stack import StorageProcess
from tests.support.timing import scaled
from tests.volume.cluster import NODES, PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.ports import PortAllocator

COMMITS = 150
FIRST = 10  # commits after the stop that may be slower


@pytest.fixture
def processes(tmp_path: Path, ports: PortAllocator) -> Iterator[dict[str, StorageProcess]]:
    with ExitStack() as ending:
        nodes = {node: StorageProcess(node, tmp_path, ports.allocate(), {"disk-reserve-bytes": 0}) for node in NODES}
        for process in nodes.values():
            process.begin()
            ending.callback(process.kill)
        for process in nodes.values():
            process.wait_serving()
        yield nodes


async def commit(volume: Volume, count: int) -> list[float]:
    """Seconds that each of `count` commits took."""
    took = []
    for number in range(count):
        begun_s = time.perf_counter()
        await volume.append([page_full(1, number, b"%d" % number * 40)], timeout_s=30)
        took.append(time.perf_counter() - begun_s)
    return took


async def test_a_node_that_stands_still_delays_nobody_and_catches_up(processes: dict[str, StorageProcess]) -> None:
    spec = VolumeSpec(uuid.uuid4(), PAGE, 10 << 30, (GroupPlacement(0, NODES),))
    addresses = [process.address for process in processes.values()]
    await Volume.create(spec, addresses, timeout_s=30)
    volume = await Volume.open(spec, addresses, timeout_s=30, az="b")
    try:
        await commit(volume, FIRST)
        before = await commit(volume, COMMITS)
        processes["b1"].stop()
        first = await commit(volume, FIRST)
        after = await commit(volume, COMMITS)
        assert max(first) < scaled(1.0)
        assert statistics.median(after) < 3 * statistics.median(before) + 0.01
        assert statistics.quantiles(after, n=20)[18] < 3 * statistics.quantiles(before, n=20)[18] + 0.05
        for number in range(50):
            begun_s = time.perf_counter()
            (run,) = await volume.read_pages([PageRange(0, 1, number, 1)], timeout_s=30)
            assert run.pages.rstrip(b"\0") == b"%d" % number * 40
            assert time.perf_counter() - begun_s < scaled(2.0)
        processes["b1"].resume()
        await volume.members.progress.wait_caught_up("b1", timeout_s=scaled(30))
        assert (await volume.members.progress.of("b1")).complete
    finally:
        await volume.close()


async def test_opening_does_not_wait_for_a_node_that_stands_still(processes: dict[str, StorageProcess]) -> None:
    """Not even where it is a peer that somebody who has to catch up could ask."""
    spec = VolumeSpec(uuid.uuid4(), PAGE, 10 << 30, (GroupPlacement(0, NODES),))
    addresses = [process.address for process in processes.values()]
    await Volume.create(spec, addresses, timeout_s=30)
    volume = await Volume.open(spec, addresses, timeout_s=30)
    await commit(volume, FIRST)
    processes["c2"].kill()
    await commit(volume, COMMITS)
    for node in ("a2", "b2", "c1"):
        await volume.members.progress.wait_caught_up(node, timeout_s=scaled(30))
    await volume.close()
    processes["a1"].kill()
    processes["b1"].stop()
    processes["c2"].start()
    begun_s = time.perf_counter()
    again = await Volume.open(spec, addresses, timeout_s=30)  # on a2, b2, c1 and c2, which lacks most of the log
    took_s = time.perf_counter() - begun_s
    try:
        assert took_s < scaled(0.7)
        assert again.vdl == volume.vdl
    finally:
        await again.close()
