"""A private mount becomes the volume's own while programs run on it: afterwards both say the same, page by page."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.log.sizes import EXTENT_PAGES, NO_GROUP
from aurora_ray.mount import driver as driver_module
from aurora_ray.mount.exchange import ExchangeRefusedError, Guard, Rules
from aurora_ray.mount.localfiles import LocalFiles
from aurora_ray.mount.mount import MountedVolume
from aurora_ray.volume.read.pages import PageRange, PageRun
from aurora_ray.volume.read.reader import VolumeReader
from aurora_ray.volume.write.volume import Volume
from tests.interposer.model import PAGE_BYTES
from tests.mount.test_mount import VOLATILE, content, finish, mount, nodes, spawn
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.volume.cluster import Cluster

pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")
__all__ = ["nodes"]

FIRST = Guard(b"control", 0, 8, b"reader  and as the volume gets it".ljust(PAGE_BYTES, b"\0"))

# A tree of files with pages, and a control file. The seed says what is done, `who` with which content: an engine and
# its standby do the same to names and sizes, and have other pages at other times.
CHANGE = """
import os, random, sys
who, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
P = int(sys.argv[4])
r, content = random.Random(seed), random.Random(who)
def write(path, at, data):
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, data, at)
    os.fsync(fd)
    os.close(fd)
os.makedirs("d", exist_ok=True)
write("control", 0, who.encode().ljust(16))
for step in range(steps):
    path = f"d/f{r.randrange(8)}"
    match r.randrange(12):
        case 0:
            if os.path.exists(path): os.unlink(path)
        case 1:
            if os.path.exists(path): os.truncate(path, r.randrange(100 * P))
        case 2:
            os.makedirs(f"d/{seed}-{step}")
            write(f"d/{seed}-{step}/x", 0, content.randbytes(3 * P))
        case 3:
            write(path, 0, content.randbytes(70 * P))
        case 4:
            if os.path.lexists("d/link"): os.unlink("d/link")
            os.symlink(r.choice(["../control", "./../control"]), "d/link")
        case 5:
            write("tmp/x", 0, b"never logged") if os.path.isdir("tmp") else os.mkdir("tmp")
        case 6:
            if os.path.exists(path): os.chmod(path, r.choice([0o600, 0o640]))
        case _:
            write(path, r.randrange(80) * P + r.randrange(P), content.randbytes(r.randrange(1, 2 * P)))
"""

LIVES_ON = """
import os, sys, time
P, stop = int(sys.argv[1]), sys.argv[2]
fd = os.open("own", os.O_CREAT | os.O_RDWR)
turn = 0
while not os.path.exists(stop):
    turn += 1
    os.pwrite(fd, b"%08d" % turn, (turn % 200) * P + 77)
    assert os.pread(fd, 8, (turn % 200) * P + 77) == b"%08d" % turn
    if turn > 200: assert os.pread(fd, 8, ((turn + 5) % 200) * P + 77) == b"%08d" % (turn - 195)
    if turn % 10 == 0: os.fsync(fd)
"""


async def private(nodes: Cluster, directory: Path) -> MountedVolume:
    async with asyncio.timeout(20):
        while True:  # nodes hear of what is durable a little later
            reader = await VolumeReader.open(nodes.spec, nodes.addresses, timeout_s=20)
            if reader.read_lsn >= max(volume.vdl for volume in nodes.volumes if isinstance(volume, Volume)):
                break
            await reader.close()
    nodes.volumes.append(reader)  # type: ignore[arg-type]  # closed with them

    async def grow():  # by whoever is the writer then
        placement = replace(nodes.spec.groups[0], group=len(nodes.spec.groups))
        nodes.spec = await nodes.volumes[-1].members.add_group(placement)
        return placement

    return await MountedVolume.open(
        reader,
        directory,
        writer=None,
        cache_bytes=64 << 20,
        ring_bytes=1 << 20,
        volatile_patterns=VOLATILE,
        grow=grow,
    )


async def change(mounted: MountedVolume, who: str, seed: int, steps: int) -> None:
    await finish(await spawn(mounted, "-c", CHANGE, who, str(seed), str(steps), str(PAGE_BYTES)))


async def differs(mounted: MountedVolume, volume: Volume) -> list[str]:
    """The pages that are here and are not what the volume answers."""
    region, found = mounted._region, []
    table = await volume.read_file_table()
    for entry in table.entries():
        if not entry.file_id:
            continue
        path = mounted.mount_dir / os.fsdecode(entry.paths[0])
        slot = region.find_slot(path.stat().st_ino)
        assert slot is not None
        view, data = region.slot(slot), path.read_bytes()
        assert (view.file_id, view.size, len(data)) == (entry.file_id, entry.size, entry.size), path
        for page in range(-(-entry.size // PAGE_BYTES)):
            if region.absent_run(slot, page, page + 1)[1]:
                continue
            extent = page // EXTENT_PAGES
            group = entry.extents[extent] if extent < len(entry.extents) else NO_GROUP
            theirs = b""
            if group != NO_GROUP:
                (run,) = await volume.read_pages([PageRange(group, entry.file_id, page, 1)])
                theirs = run.pages
            here = data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
            if here != theirs.ljust(PAGE_BYTES, b"\0")[: len(here)]:
                found.append(f"{path.name} page {page}")
    return found


async def is_whole(nodes: Cluster, mounted: MountedVolume, volume: Volume, tmp_path: Path) -> None:
    """The mount, the volume page by page, and another mount of the volume say the same."""
    await mounted.flush(timeout_s=20)
    assert await differs(mounted, volume) == []
    ours = await content(mounted, tmp_path)
    other = await private(nodes, tmp_path / "other")
    try:
        theirs = await content(other, tmp_path)
    finally:
        await other.close()
    assert {path: crc for path, crc in ours.items() if not path.startswith("tmp")} == theirs


@pytest.mark.parametrize("seed", range(6))
async def test_a_private_mount_becomes_the_volumes_own(nodes: Cluster, tmp_path: Path, seed: int) -> None:
    r = random.Random(seed)
    before = await nodes.open()
    writers = await mount(nodes, before, tmp_path / "writer")
    await change(writers, "writer", seed, 40)
    await writers.flush(timeout_s=20)
    mounted = await private(nodes, tmp_path / "reader")
    try:
        await asyncio.gather(change(mounted, "reader", seed + 100, 40), change(writers, "again", seed + 100, 40))
        floor = mounted.log_position if seed % 2 else 0
        await change(mounted, "reader", seed + 200, r.randrange(40))
        await writers.flush(timeout_s=20)
        await content(mounted, tmp_path)  # pages of before the exchange are here
        await writers.close()
        lives = await spawn(mounted, "-c", LIVES_ON, str(PAGE_BYTES), os.fspath(tmp_path / "stop"))
        await asyncio.sleep(r.random())  # not synchronisation: the exchange may come at any moment of it
        volume = await nodes.open()
        owed = await mounted.exchange(volume, await volume.read_file_table(), Rules(FIRST, floor=floor))
        assert owed
        mounted.begin_settling()
        await change(mounted, "promoted", seed + 300, r.randrange(1, 20))
        async with asyncio.timeout(60):
            await mounted.wait_settled()
        (tmp_path / "stop").touch()
        await finish(lives)
        assert (mounted.mount_dir / "control").read_bytes().startswith(b"promoted")
        await is_whole(nodes, mounted, volume, tmp_path)
    finally:
        await mounted.close()


async def test_what_is_on_its_way_comes_as_of_the_exchange(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros, too, of what lay nowhere when it was asked for."""
    write = "import os; fd = os.open('big', os.O_CREAT | os.O_RDWR); {}; os.fsync(fd)"
    writers = await mount(nodes, await nodes.open(), tmp_path / "writer")
    await change(writers, "writer", 1, 0)
    await finish(await spawn(writers, "-c", write.format(f"os.ftruncate(fd, {50 * PAGE_BYTES})")))
    await writers.flush(timeout_s=20)
    mounted = await private(nodes, tmp_path / "reader")
    reached, goes_on, find = asyncio.Event(), asyncio.Event(), LocalFiles.find

    async def late(files: LocalFiles, slot: int, *, pid: int = 0, fd: int = -1) -> int | None:
        if not pid:
            reached.set()
            await goes_on.wait()
        return await find(files, slot, pid=pid, fd=fd)

    try:
        await change(mounted, "reader", 1, 0)
        await finish(await spawn(writers, "-c", write.format(f"os.pwrite(fd, b'n' * {50 * PAGE_BYTES}, 0)")))
        await writers.flush(timeout_s=20)
        await writers.close()
        volume = await nodes.open()
        monkeypatch.setattr(LocalFiles, "known", lambda *_: None)
        monkeypatch.setattr(LocalFiles, "find", late)
        reads = f"import os; assert os.pread(os.open('big', os.O_RDONLY), 3, 9 * {PAGE_BYTES}) == b'nnn'"
        reading = await spawn(mounted, "-c", reads)
        await reached.wait()
        await mounted.exchange(volume, await volume.read_file_table(), Rules(FIRST))
        goes_on.set()
        await finish(reading)
        async with asyncio.timeout(60):
            await mounted.wait_settled()
        await change(mounted, "promoted", 1, 0)
        await is_whole(nodes, mounted, volume, tmp_path)
    finally:
        await mounted.close()


async def test_what_never_comes_as_of_before_comes_as_of_the_exchange(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever read the volume before is closed soon, and may try for long."""
    write = f"import os; fd = os.open('big', os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'n' * {50 * PAGE_BYTES}, 0)"
    writers = await mount(nodes, await nodes.open(), tmp_path / "writer")
    await change(writers, "writer", 1, 0)
    await finish(await spawn(writers, "-c", write))
    await writers.flush(timeout_s=20)
    mounted = await private(nodes, tmp_path / "reader")
    asked, before, read_pages = asyncio.Event(), mounted._driver._source, VolumeReader.read_pages

    async def never(source: VolumeReader, *arguments: Any, **named: Any) -> list[PageRun]:
        if source is before:
            asked.set()
            await asyncio.Event().wait()
        return await read_pages(source, *arguments, **named)

    try:
        await change(mounted, "reader", 1, 0)
        await writers.close()
        volume = await nodes.open()
        monkeypatch.setattr(VolumeReader, "read_pages", never)
        reads = "import os; assert os.pread(os.open('big', os.O_RDONLY), 3, {}) == b'nnn'"
        reading = [await spawn(mounted, "-c", reads.format(page * PAGE_BYTES)) for page in (9, 9, 30)]
        await asked.wait()
        await mounted.exchange(volume, await volume.read_file_table(), Rules(FIRST))
        await asyncio.gather(*map(finish, reading))
        async with asyncio.timeout(60):
            await mounted.wait_settled()
        await change(mounted, "promoted", 1, 0)
        await is_whole(nodes, mounted, volume, tmp_path)
    finally:
        await mounted.close()


WRITES = """
import os, sys
path, pages, byte, P = sys.argv[1], eval(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4])
fd = os.open(path, os.O_CREAT | os.O_RDWR)
for page in pages: os.pwrite(fd, byte * P, page * P)
os.fsync(fd)
print(*(os.pread(fd, 1, at).decode() for at in range(0, os.fstat(fd).st_size, P)), sep="", end="")
"""


async def write(mounted: MountedVolume, path: str, pages: Sequence[int], byte: str = "") -> str:
    """Fills pages with one byte; what all pages of the file have then."""
    arguments = (WRITES, path, repr(pages), byte, str(PAGE_BYTES))
    child = await spawn(mounted, "-c", *arguments, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    has = await child.stdout.read()
    await finish(child)
    return has.decode()


async def test_what_was_written_here_as_the_volume_has_it_stays_and_is_not_owed(nodes: Cluster, tmp_path: Path) -> None:
    """Below `same`; which is said, not compared: here it is not so, to see which is which."""
    pages, same, chunk = 2 * EXTENT_PAGES + 20, EXTENT_PAGES + 10, EXTENT_PAGES
    written = [0, 2, 3, chunk - 1, chunk, chunk + 2, same - 1, same, same + 5, 2 * chunk + 1]
    writers = await mount(nodes, await nodes.open(), tmp_path / "writer")
    await change(writers, "writer", 1, 0)
    await write(writers, "log", range(pages), "v")
    await write(writers, "file", range(4), "v")
    await writers.flush(timeout_s=20)
    mounted = await private(nodes, tmp_path / "reader")
    try:
        await change(mounted, "reader", 1, 0)
        assert await write(mounted, "log", written, "r") == "".join("vr"[page in written] for page in range(pages))
        assert (await write(mounted, "log", [4], "v"))[4] == "v"
        assert await write(mounted, "file", [1], "v") == "vvvv", "as it was"
        await writers.close()
        volume = await nodes.open()
        rules = Rules(FIRST, of_volume=("log",), same={b"log": same})
        owed = await mounted.exchange(volume, await volume.read_file_table(), rules)
        assert owed == 2, "the control file's page, and one of `file` that was written as it was"
        region = mounted._region
        slot = region.find_slot((mounted.mount_dir / "log").stat().st_ino)
        assert slot is not None
        here = {page for page in range(pages) if not region.absent_run(slot, page, page + 1)[1]}
        assert here == {page for page in [*written, 4] if page < same}
        assert await write(mounted, "log", []) == "".join("vr"[page in here - {4}] for page in range(pages))
        async with asyncio.timeout(60):
            await mounted.wait_settled()
        await change(mounted, "promoted", 1, 0)
        await mounted.flush(timeout_s=20)
        assert sorted(await differs(mounted, volume)) == sorted(f"log page {page}" for page in here - {4})
    finally:
        await mounted.close()


async def settling(nodes: Cluster, tmp_path: Path) -> tuple[MountedVolume, Volume]:
    """A mount right after an exchange, of which the volume lacks four extents."""
    writers = await mount(nodes, await nodes.open(), tmp_path / "writer")
    await change(writers, "writer", 1, 0)
    await write(writers, "file", range(4 * EXTENT_PAGES), "v")
    await writers.flush(timeout_s=20)
    mounted = await private(nodes, tmp_path / "reader")
    await change(mounted, "reader", 1, 0)
    await write(mounted, "file", range(4 * EXTENT_PAGES), "r")
    await writers.close()
    volume = await nodes.open()
    await mounted.exchange(volume, await volume.read_file_table(), Rules(FIRST))
    await mounted.flush(timeout_s=20)
    return mounted, volume


async def test_the_volume_gets_what_it_lacks_after_a_while(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not beside the first sessions; at once when somebody waits for a checkpoint, which waits for it."""
    monkeypatch.setattr(driver_module, "_SETTLE_AFTER_S", 1000.0)
    mounted, volume = await settling(nodes, tmp_path)
    try:
        before = mounted.log_position
        mounted.begin_settling()
        checkpoint = asyncio.create_task(change(mounted, "promoted", 1, 0))
        await asyncio.wait({checkpoint}, timeout=0.3)
        assert (mounted.log_position, checkpoint.done()) == (before, False)
        mounted.hurry()
        async with asyncio.timeout(20):
            await checkpoint
        assert mounted.log_position - before > 4 * EXTENT_PAGES * PAGE_BYTES
        await mounted.flush(timeout_s=20)
        assert await differs(mounted, volume) == []
    finally:
        await mounted.close()


async def test_the_volume_gets_what_it_lacks_a_little_at_a_time(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_SETTLE_AFTER_S", 0.0), ("_SETTLE_BYTES_S", 1), ("_SETTLE_MOST_S", 1e6)):
        monkeypatch.setattr(driver_module, name, value)
    mounted, _ = await settling(nodes, tmp_path)
    try:
        before = mounted.log_position
        mounted.begin_settling()
        await poll_until(lambda: mounted.log_position > before)
        await asyncio.sleep(0.1)  # not synchronisation: nothing happens
        assert mounted.log_position - before < 1.5 * EXTENT_PAGES * PAGE_BYTES
        assert not mounted._driver.settled.is_set()
        mounted.hurry()
        async with asyncio.timeout(20):
            await mounted._driver.settled.wait()
    finally:
        await mounted.close()


async def test_what_cannot_be_exchanged_stays_private(nodes: Cluster, tmp_path: Path) -> None:
    before = await nodes.open()
    writers = await mount(nodes, before, tmp_path / "writer")
    await change(writers, "writer", 1, 20)
    await writers.flush(timeout_s=20)
    mounted = await private(nodes, tmp_path / "reader")
    try:
        await writers.close()
        volume = await nodes.open()
        with pytest.raises(ExchangeRefusedError, match="not as the engine wrote it"):
            await mounted.exchange(volume, await volume.read_file_table(), Rules(FIRST))
        await change(mounted, "reader", 1, 5)
        assert volume.tail_lsn == volume.vdl == (await nodes.open()).tail_lsn
    finally:
        await mounted.close()
