"""What is open without a name stays readable, whatever the storage nodes collect meanwhile; and no longer than that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.interposer import native
from aurora_ray.mount import unlinked
from tests.interposer.model import PAGE_BYTES
from tests.interposer.scenario import evict_all, python, recorder_at
from tests.mount.test_mount import finish, mount, spawn
from tests.support.polling import poll_until
from tests.volume.cluster import running

if TYPE_CHECKING:
    from pathlib import Path

# gRPC says so when a node ends while a peer fetches log from it.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")

PAGES = 150
CONTENT = f"b''.join(n.to_bytes(4, 'little') * {PAGE_BYTES // 4} for n in range({PAGES}))"
WRITE = f"import os\nf = os.open('f', os.O_CREAT | os.O_RDWR)\nos.pwrite(f, {CONTENT}, 0)\nos.fsync(f)"
# Reads two pages only in the beginning, and writes something else until it is told to read everything.
USE_UNLINKED = f"""
import os, sys
f = os.open("f", os.O_RDONLY)
os.pread(f, {2 * PAGE_BYTES}, {40 * PAGE_BYTES})
os.unlink("f")
other = os.open("other", os.O_CREAT | os.O_RDWR)
while not os.path.exists(sys.argv[1]):
    os.pwrite(other, os.urandom(100_000), 0)
    os.fsync(other)
assert os.pread(f, 1 << 30, 0) == {CONTENT}
"""
FAST = {
    "retention_s": 0,
    "retention_bytes": 0,
    "lease_s_max": 2.0,
    "layer_bytes": 1 << 20,
    "idle_layer_bytes": 1,
    "idle_s": 0.1,
    "background_interval_s": 0.05,
}


@pytest.mark.parametrize("small", [True, False], ids=["brought in", "held"])
async def test_a_cold_file_that_is_open_without_a_name_outlives_retention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    monkeypatch.setattr(unlinked, "LOOK_S", 0.1)
    async with running(tmp_path / "nodes", **FAST) as nodes:
        nodes.spec = replace(nodes.spec, page_size=PAGE_BYTES)
        volume = await nodes.open()
        mounted = await mount(nodes, volume, tmp_path / "one")
        await finish(await spawn(mounted, "-c", WRITE))
        await mounted.close()
        cache_bytes = (64 << 20) if small else 4 * PAGES * PAGE_BYTES
        mounted = await mount(nodes, volume, tmp_path / "two", cache_bytes=cache_bytes)
        before_lsn, go = volume.vdl, tmp_path / "go"
        child = await spawn(mounted, "-c", USE_UNLINKED, str(go))
        segment = nodes.segment("a1")
        if small:
            await poll_until(lambda: mounted.stats()["pages_fetched"] >= PAGES, what="the file's pages are here")
            await poll_until(lambda: segment.meta.floor_lsn > before_lsn + 1_000_000, what="history goes on")
        else:
            merged_lsn = before_lsn + 3_000_000
            await poll_until(lambda: segment.meta.coalesced_lsn > merged_lsn, timeout_s=30, what="time to collect")
            assert segment.meta.floor_lsn < before_lsn + 200_000
            assert mounted.stats()["pages_fetched"] < PAGES
        go.touch()
        await finish(child)
        await poll_until(lambda: segment.meta.floor_lsn > before_lsn + 1_000_000, what="nothing is held any more")
        await mounted.close()
        await volume.close()


def test_files_without_a_name_are_found_once_and_only_if_something_is_absent(tmp_path: Path) -> None:
    make = "for n in 'abcd':\n f = os.open(n, os.O_CREAT | os.O_RDWR); os.pwrite(f, b'x' * 200_000, 0); os.fsync(f)\n"
    with recorder_at(tmp_path) as it:
        python(it, "import os\n" + make)
        slots = {name: it.slot(name) for name in "abcd"}
        evict_all(it)
        python(it, "import os\nopen('b').read()\nos.unlink('c'); os.unlink('b'); os.rename('d', 'a')")
        lsn, found = it.region.dropped_since(0)
        assert found == [slots["c"], slots["a"]]
        assert [it.region.slot(slot).drop_lsn for slot in found][-1] == lsn - 1
        assert it.region.dropped_since(lsn) == (lsn, [])


def test_what_is_gone_is_not_counted_as_cached(tmp_path: Path) -> None:
    code = """
import os
for n in range(20):
    f = os.open('f', os.O_CREAT | os.O_RDWR); os.pwrite(f, b'x' * 500_000, 0)
    os.unlink('f') if n % 2 else os.rename('f', 'g')
    os.pwrite(f, b'more' * 10_000, 600_000)
    os.ftruncate(f, 20_000)
    os.close(f)
"""
    with recorder_at(tmp_path) as it:
        python(it, "import os\n" + code)
        assert it.region.peek().present_pages == -(-20_000 // PAGE_BYTES)
        python(it, "import os\nos.unlink('g')")
        assert it.region.peek().present_pages == 0
        assert it.region.evictable(native.Candidate(), 1 << 60, 64, 4096) == []
