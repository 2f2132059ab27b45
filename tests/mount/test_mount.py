"""A volume under a directory: programs write through the interposer, six nodes keep it, a new mount has it again."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.errors import FencedError, OutOfRangeError, QuorumLostError
from aurora_ray.log.sizes import GROUPS_MAX
from aurora_ray.mount.driver import Driver
from aurora_ray.mount.mount import MountedVolume
from aurora_ray.volume.read.reader import VolumeReader
from aurora_ray.volume.write.volume import Volume
from tests.interposer.model import PAGE_BYTES, Operations
from tests.support.polling import poll_until
from tests.volume.cluster import Cluster

# gRPC says so when a node ends while a peer fetches log from it.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aurora_ray.volume.read.pages import PageRange, PageRun

REPOSITORY = os.fspath(Path(__file__).parents[2])
VOLATILE = [("below", "tmp"), ("exact", "pid")]


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Six nodes and a volume whose protection groups take eight extents each."""
    it = Cluster(tmp_path / "nodes")
    it.spec = replace(it.spec, page_size=PAGE_BYTES, group_bytes=8 * 64 * PAGE_BYTES)
    try:
        await it.start()
        await it.create()
        yield it
    finally:
        await it.close()


async def mount(
    cluster: Cluster,
    volume: Volume,
    directory: Path,
    cache_bytes: int = 64 << 20,
    soon: tuple[str, ...] = (),
    *,
    groups_max: int = GROUPS_MAX,
) -> MountedVolume:
    async def grow():
        first = cluster.spec.groups[0]
        placement = replace(first, group=len(cluster.spec.groups))
        cluster.spec = await volume.members.add_group(placement)
        return placement

    return await MountedVolume.open(
        volume,
        directory,
        writer=volume,
        cache_bytes=cache_bytes,
        soon=soon,
        ring_bytes=1 << 20,
        volatile_patterns=VOLATILE,
        grow=grow,
        groups_max=groups_max,
    )


async def spawn(mounted: MountedVolume, *arguments: str, stdout: Any = None) -> asyncio.subprocess.Process:
    environment = {**os.environ, **mounted.engine_environment(), "PYTHONPATH": REPOSITORY}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=mounted.mount_dir,
        env=environment,
        pass_fds=mounted.pass_fds,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(child: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60):
        _, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()


def model_after(seed: int, count: int) -> dict[str, bytes | None]:
    operations = Operations(seed)
    for _ in range(count):
        operations.next()
    return operations.tree.snapshot()


WRITE_FOREVER = """
import os
fd = os.open("f", os.O_CREAT | os.O_RDWR)
while True:
    os.pwrite(fd, os.urandom(99), 0)
    os.fsync(fd)
"""
READ_ALL = """
import os, sys, zlib
listing = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
for directory, _, names in os.walk("."):
    for name in names:
        path = os.path.relpath(os.path.join(directory, name))
        os.write(listing, f"{path} {zlib.crc32(open(path, 'rb').read())}\\n".encode())
"""


async def content(mounted: MountedVolume, tmp_path: Path) -> dict[str, int]:
    """What a program under the interposer reads: path -> CRC."""
    listing = tmp_path / "listing"
    await finish(await spawn(mounted, "-c", READ_ALL, os.fspath(listing)))
    lines = [line.rsplit(" ", 1) for line in listing.read_text().splitlines()]
    return {path: int(crc) for path, crc in lines}


def crcs(tree: dict[str, bytes | None]) -> dict[str, int]:
    return {path: zlib.crc32(data) for path, data in tree.items() if data is not None}


SPARSE = """
import os, sys
fd, extent, far, written = os.open("f", os.O_CREAT | os.O_RDWR), int(sys.argv[1]), 1 << 33, 0
try:
    while written < 100:
        os.pwrite(fd, b"%d " % written, far + written * extent)
        written += 1
except OSError as error:
    print(written, error.errno, flush=True)
assert [os.pread(fd, 3, far + n * extent).split()[0] for n in range(written)] == [b"%d" % n for n in range(written)]
os.pwrite(fd, b"again", far)
os.close(fd)
os.unlink("f")
fd = os.open("g", os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b"there is room", far)
os.fsync(fd)
"""


@pytest.mark.allowed_logs("the volume cannot grow: its limit is 3 protection groups")
async def test_a_volume_filled_sparsely_to_its_limit_says_so_and_has_room_again_when_something_goes(
    nodes: Cluster, tmp_path: Path
) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one", groups_max=3)
    out = tmp_path / "out"
    with out.open("wb") as told:
        await finish(await spawn(mounted, "-c", SPARSE, str(64 * PAGE_BYTES), stdout=told))
    assert out.read_text().split() == [str(3 * 8), str(errno.ENOSPC)]
    assert len(volume.spec.groups) == 3
    assert mounted.stats()["used_bytes"] == 64 * PAGE_BYTES
    await mounted.flush(timeout_s=30)
    await mounted.close()
    again = await mount(nodes, await nodes.open(), tmp_path / "two", groups_max=3)
    assert again.stats()["used_bytes"] == 64 * PAGE_BYTES
    await again.close()


@pytest.mark.parametrize("cache_bytes", [64 << 20, 1 << 20], ids=["all cached", "small cache"])
async def test_a_new_mount_has_what_the_old_one_had(nodes: Cluster, tmp_path: Path, cache_bytes: int) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one", cache_bytes)
    journal = tmp_path / "journal"
    journal.touch()
    await finish(await spawn(mounted, "-m", "tests.interposer.workload", "5", "400", str(journal)))
    await mounted.flush(timeout_s=10)
    assert await content(mounted, tmp_path) == crcs(model_after(5, 400))
    assert len(nodes.spec.groups) > 1
    await mounted.close()
    await volume.close()
    assert not (tmp_path / "one").exists()

    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "two", cache_bytes)
    assert await content(mounted, tmp_path) == crcs(model_after(5, 400))
    await mounted.close()
    await volume.close()


WRITE_LARGE = """
import os, sys
content = open(sys.argv[1], "rb").read()
fd = os.open("large", os.O_CREAT | os.O_RDWR)
os.pwrite(fd, content, 0)
os.fsync(fd)
"""
# Where the volume's tree of extents has 64 in a leaf, the file's are in two.
TOUCH_LARGE = """
import os, sys
content = open(sys.argv[1], "rb").read()
how, page = sys.argv[2], int(sys.argv[3])
extent = 64 * page
fd = os.open("large", os.O_RDWR)
if how == "its end":
    assert os.pread(fd, page, len(content) - page) == content[-page:]
elif how == "a new extent":
    os.pwrite(fd, b"new", len(content) + extent)
elif how == "a new size":
    os.ftruncate(fd, len(content) + 3 * extent)
elif how == "allocation":
    os.posix_fallocate(fd, len(content), 3 * extent)
at = 64 * extent  # where the second leaf begins
assert os.pread(fd, len(content) - at, at) == content[at:], "the second leaf"
assert os.pread(fd, at, 0) == content[:at], "the first leaf"
os.ftruncate(fd, len(content))
os.fsync(fd)
"""


async def test_a_file_of_many_extents_whatever_is_touched_first(nodes: Cluster, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_bytes(os.urandom(70 * 64 * PAGE_BYTES))
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "1")
    await finish(await spawn(mounted, "-c", WRITE_LARGE, os.fspath(content)))
    await mounted.close()
    await volume.close()
    for first in ("its end", "its beginning", "a new extent", "a new size", "allocation"):
        volume = await nodes.open()
        mounted = await mount(nodes, volume, tmp_path / "2")
        await finish(await spawn(mounted, "-c", TOUCH_LARGE, os.fspath(content), first, str(PAGE_BYTES)))
        await mounted.close()
        await volume.close()


async def test_a_fenced_mount_ends_its_programs(nodes: Cluster, tmp_path: Path) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "old")
    child = await spawn(mounted, "-c", WRITE_FOREVER)
    successor = await nodes.open()
    async with asyncio.timeout(20):
        assert isinstance(await mounted.wait_failed(), FencedError)
        _, errors = await child.communicate()
    assert child.returncode == 70
    assert b"another writer has taken over" in errors
    await mounted.close()
    await volume.close()
    await successor.close()


async def test_programs_end_with_their_driver(nodes: Cluster, tmp_path: Path) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "mount")
    child = await spawn(mounted, "-c", WRITE_FOREVER)
    await volume.durable.wait_for(10_000, timeout_s=20)
    async with asyncio.timeout(20):
        await mounted.close()
        _, errors = await child.communicate()
    assert child.returncode == 70
    assert b"closed" in errors or b"gone" in errors
    await volume.close()


async def test_a_mount_that_fails_on_the_way_leaves_nothing_at_work(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Driver, slots: object) -> None:
        raise QuorumLostError("no copy answers")

    volume = await nodes.open()
    monkeypatch.setattr(Driver, "prefetch", fail)
    with pytest.raises(QuorumLostError):
        await mount(nodes, volume, tmp_path / "one")
    assert not (tmp_path / "one").exists()
    monkeypatch.undo()
    mounted = await mount(nodes, volume, tmp_path / "one")  # the same volume, with nobody else at its log
    await finish(await spawn(mounted, "-c", "open('f', 'w').write('x')"))
    await mounted.flush(timeout_s=10)
    await mounted.close()
    await volume.close()


UNLINKED = """
import os
fd = os.open("f", os.O_CREAT | os.O_RDWR)
data = bytes(range(256)) * 4096
os.pwrite(fd, data, 0)
os.fsync(fd)
os.unlink("f")
other = os.open("g", os.O_CREAT | os.O_RDWR)
for _ in range(40):
    os.pwrite(other, os.urandom(1 << 20), 0)
    os.fsync(other)
    assert os.pread(fd, len(data), 0) == data
"""


async def test_an_open_file_is_read_after_its_last_name_went(nodes: Cluster, tmp_path: Path) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one", cache_bytes=1 << 20)
    await finish(await spawn(mounted, "-c", UNLINKED))
    await mounted.close()
    await volume.close()


async def test_files_that_will_be_wanted_come_by_themselves(nodes: Cluster, tmp_path: Path) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one")
    script = "import os\nos.mkdir('d')\nfor p in ('d/1259', 'd/16384'):\n open(p, 'wb').write(b'x' * 81920)\n"
    await finish(await spawn(mounted, "-c", script))
    await mounted.flush(timeout_s=10)
    await mounted.close()
    mounted = await mount(nodes, volume, tmp_path / "two", soon=("d/????",))
    await poll_until(lambda: mounted.stats()["pages_fetched"] == 10, what="the one file's ten pages are here")
    script = "for p in ('d/1259', 'd/16384'):\n assert open(p, 'rb').read() == b'x' * 81920\n"
    await finish(await spawn(mounted, "-c", script))
    assert mounted.stats()["pages_fetched"] == 20
    await mounted.close()
    await volume.close()


async def test_volatile_paths_stay_out(nodes: Cluster, tmp_path: Path) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one")
    script = "import os\nos.mkdir('tmp')\nfor p in ('tmp/x', 'pid', 'kept'):\n open(p, 'w').write(p)\n"
    await finish(await spawn(mounted, "-c", script))
    await mounted.flush(timeout_s=10)
    table = await volume.read_file_table()
    assert [entry.paths[0] for entry in table.entries()] == [b"", b"tmp", b"kept"]
    await mounted.close()
    await volume.close()


PAGES = 2000
WRITE_PAGES = f"""
import os
fd = os.open("f", os.O_CREAT | os.O_RDWR)
for page in range({PAGES}):
    os.pwrite(fd, page.to_bytes(4, "little") * {PAGE_BYTES // 4}, page * {PAGE_BYTES})
os.fsync(fd)
"""
# As an engine that recovers: scattered pages, announced well ahead of being read.
READ_SCATTERED = f"""
import os
fd = os.open("f", os.O_RDONLY)
pages = [page * 701 % {PAGES} for page in range({PAGES})]
for page in pages[:64]:
    os.posix_fadvise(fd, page * {PAGE_BYTES}, {PAGE_BYTES}, os.POSIX_FADV_WILLNEED)
for page, ahead in zip(pages, pages[64:] + [0] * 64):
    os.posix_fadvise(fd, ahead * {PAGE_BYTES}, {PAGE_BYTES}, os.POSIX_FADV_WILLNEED)
    assert os.pread(fd, 4, page * {PAGE_BYTES}) == page.to_bytes(4, "little")
"""


async def test_scattered_pages_that_are_wanted_at_once_come_together(nodes: Cluster, tmp_path: Path) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one")
    await finish(await spawn(mounted, "-c", WRITE_PAGES))
    await mounted.close()
    await volume.close()

    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "two")
    before = volume.stats()["reads"]
    await finish(await spawn(mounted, "-c", READ_SCATTERED))
    assert mounted.stats()["pages_fetched"] >= PAGES
    assert volume.stats()["reads"] - before < PAGES / 4
    await mounted.close()
    await volume.close()


WRITE_UNEVENLY = f"""
import os
fd = os.open("f", os.O_CREAT | os.O_RDWR)
for first, count in (0, 9), (12, 3), (20, 44), (70, 5):
    os.pwrite(fd, b"".join(bytes([page]) * {PAGE_BYTES} for page in range(first, first + count)), first * {PAGE_BYTES})
os.ftruncate(fd, 80 * {PAGE_BYTES})
os.pwrite(fd, b"end", 80 * {PAGE_BYTES})
os.fsync(fd)
"""
READ_PART_THEN_ALL = f"""
import os
fd = os.open("f", os.O_RDWR)
os.pwrite(fd, b"new" * 100, 5 * {PAGE_BYTES} + 7)  # pages that are here already, and newer, amid a run that comes
assert os.pread(fd, {PAGE_BYTES}, 30 * {PAGE_BYTES}) == bytes([30]) * {PAGE_BYTES}
expected = bytearray(80 * {PAGE_BYTES} + 3)
for first, count in (0, 9), (12, 3), (20, 44), (70, 5):
    for page in range(first, first + count):
        expected[page * {PAGE_BYTES} : (page + 1) * {PAGE_BYTES}] = bytes([page]) * {PAGE_BYTES}
expected[5 * {PAGE_BYTES} + 7 : 5 * {PAGE_BYTES} + 307] = b"new" * 100
expected[80 * {PAGE_BYTES} :] = b"end"
assert os.pread(fd, 100 * {PAGE_BYTES}, 0) == expected
"""


async def _written_unevenly(nodes: Cluster, tmp_path: Path) -> tuple[Volume, MountedVolume]:
    """The file is written, and nothing of it is here yet: another mount."""
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one")
    await finish(await spawn(mounted, "-c", WRITE_UNEVENLY))
    await mounted.close()
    await volume.close()
    volume = await nodes.open()
    return volume, await mount(nodes, volume, tmp_path / "two")


async def test_runs_of_pages_come_into_the_gaps_between_newer_ones(nodes: Cluster, tmp_path: Path) -> None:
    volume, mounted = await _written_unevenly(nodes, tmp_path)
    await finish(await spawn(mounted, "-c", READ_PART_THEN_ALL))
    await mounted.close()
    await volume.close()


WRITE_ELSEWHERE = """
import os
fd = os.open("g", os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b"more", 0)
os.fsync(fd)
"""


async def test_a_read_that_waited_until_its_history_was_gone_is_made_anew(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mounted = await _written_unevenly(nodes, tmp_path)
    read_pages, asked = volume.read_pages, list[int | None]()

    async def too_late(ranges: Sequence[PageRange], lsn: int | None = None) -> list[PageRun]:
        asked.append(lsn)
        if len(asked) == 1:
            await finish(await spawn(mounted, "-c", WRITE_ELSEWHERE))
            raise OutOfRangeError(f"LSN {lsn} is no longer kept")
        return await read_pages(ranges, lsn)

    monkeypatch.setattr(volume, "read_pages", too_late)
    await finish(await spawn(mounted, "-c", READ_PART_THEN_ALL))
    assert asked[0] is not None
    assert all(lsn is not None and lsn > asked[0] for lsn in asked[1:])
    await mounted.close()
    await volume.close()


WRITE_ONE_PAGE = f"""
import os
os.pwrite(os.open("f", os.O_RDWR), b"n" * {PAGE_BYTES}, 5 * {PAGE_BYTES})
"""


async def test_what_arrives_late_does_not_overwrite_what_was_written_meanwhile(nodes: Cluster, tmp_path: Path) -> None:
    volume, mounted = await _written_unevenly(nodes, tmp_path)
    await finish(await spawn(mounted, "-c", WRITE_ONE_PAGE))
    fd = os.open(mounted.mount_dir / "f", os.O_RDWR)
    slot = mounted._region.find_slot(os.fstat(fd).st_ino)
    assert slot is not None
    old = [bytes([page]) * PAGE_BYTES for page in range(9)]
    assert mounted._region.fill(slot, fd, 0, bytes([1] * 9), b"".join(old)) == 0
    assert os.pread(fd, 9 * PAGE_BYTES, 0) == b"".join([*old[:5], b"n" * PAGE_BYTES, *old[6:]])
    os.close(fd)
    await mounted.close()
    await volume.close()


OVERWRITE = """
import os
fd = os.open("f", os.O_RDWR)
assert os.pread(fd, 9, 0) == b"the first"
for number in range(300):  # more than the ring takes, and in more extents than the volume has room for
    os.pwrite(fd, os.urandom(8000), 8192 + number % 20 * 64 * 8192)
os.pwrite(fd, b"my own", 0)
os.fsync(fd)
os.rename("f", "mine")
assert os.pread(fd, 9, 0) == b"my ownrst"
"""


async def test_a_mount_without_a_writer_keeps_its_changes_to_itself(nodes: Cluster, tmp_path: Path) -> None:
    volume = await nodes.open()
    mounted = await mount(nodes, volume, tmp_path / "one")
    write = "import os; fd = os.open('f', os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'the first' * 2000, 0); os.fsync(fd)"
    await finish(await spawn(mounted, "-c", write))
    lsn = await mounted.flush(timeout_s=10)
    await mounted.close()
    await poll_until(lambda: any(nodes.segment(node).vdl == lsn for node in nodes.servers), what="the VDL is known")
    for _ in range(2):  # the second finds nothing of the first
        reader = await VolumeReader.open(nodes.spec, nodes.addresses, timeout_s=20)
        assert reader.read_lsn == lsn
        own = await MountedVolume.open(
            reader, tmp_path / "own", writer=None, cache_bytes=64 << 20, ring_bytes=1 << 20, volatile_patterns=VOLATILE
        )
        await finish(await spawn(own, "-c", OVERWRITE))
        assert own.stats()["local_redo_bytes"] > 1 << 20
        await own.flush(timeout_s=10)
        await own.close()
        await reader.close()
    assert volume.vdl == volume.tail_lsn == lsn
    await volume.close()
