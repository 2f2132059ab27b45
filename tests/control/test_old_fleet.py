"""Data that earlier versions wrote opens, and is brought up to date in place.

`data/fleet-format-1.tar.xz`: six storage nodes of a stopped fleet with a control state of format 1 that was saved often
and has three pages, and a cluster `demo` with one file of three pages.
"""

import tarfile
from pathlib import Path

import pytest

from aurora_ray.control.model import state_file
from aurora_ray.control.model.state_file import FIRST_FILE_ID
from aurora_ray.volume.read.pages import PageRange
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import started

FIXTURE = Path(__file__).parent / "data" / "fleet-format-1.tar.xz"
FLEET_ID = "9a4f59e7-8dc3-488d-bb3f-f83dc44dc1b3"
# Storage nodes that are stopped at the end of a test may be talking to each other.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")


async def test_a_fleet_of_format_1_opens_with_all_it_had_and_is_brought_up_to_date(tmp_path: Path) -> None:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    runtime = LocalRuntime(tmp_path / "fleet", opens_volumes=True)
    try:
        for _ in range(2):
            async with started(runtime) as running:
                await running.api.wait_available("demo", 30)
                fleet, store = running.plane.fleet, running.plane.declared.store
                assert str(fleet.fleet_id) == FLEET_ID
                assert fleet.cluster("demo").bin_dir.startswith("/opt/engines/long-name/")
                assert fleet.cluster("demo").volume.initialised
                volume = runtime.instances["demo-1"].volume
                assert volume is not None
                (run,) = await volume.read_pages([PageRange(0, 1, 0, 3)])
                assert run.pages == b"".join(bytes([65 + n]) * 8192 for n in range(3))
                await running.plane.commit(lambda fleet: fleet.with_node(fleet.nodes[0]))
                assert store is not None
                versions = await store.versions()
                assert all(version.fleet is not None for version in versions)
            assert volume is not None
            await volume.close()
            runtime.volumes.clear()
        async with started(runtime) as running:
            await running.api.wait_open(30)
            await running.plane.commit(lambda fleet: fleet.with_replacement(fleet.nodes[0].node_id))
            assert running.plane.declared.store is not None
            there = await state_file.listing(running.plane.declared.store._volume)
            assert not there.first_format
            assert FIRST_FILE_ID not in there.numbers
    finally:
        await runtime.close()
