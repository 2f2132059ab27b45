"""The shared region: what it gives back, what it refuses, and what it does when somebody else does not go on."""

from __future__ import annotations

import errno
import inspect
import os
import select
import signal
import subprocess
import sys
import time
from array import array
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import RegionClosedError
from aurora_ray.interposer import native
from aurora_ray.interposer.region import Region, Taker
from aurora_ray.log import batch as batches
from aurora_ray.log.flush import LogEnd
from aurora_ray.log.record import iter_records
from aurora_ray.mount.redo import FLUSH_BYTES
from tests.interposer.model import PAGE_BYTES
from tests.interposer.recorder import VOLUME, Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BEGIN = f"import os, signal, sys, time\nP = {PAGE_BYTES}\nf = os.open('f', os.O_RDWR | os.O_CREAT)\n"


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    it = Recorder(tmp_path)
    yield it
    it.close()


def spawn(recorder: Recorder, code: str) -> subprocess.Popen[bytes]:
    return recorder.spawn([sys.executable, "-I", "-S", "-c", BEGIN + code], stdout=subprocess.PIPE)


def run(recorder: Recorder, code: str) -> str:
    recorder.serve(spawn(recorder, code))
    return recorder.output.decode()


def test_a_closed_region_refuses_every_call(tmp_path: Path) -> None:
    it = Recorder(tmp_path)
    it.close()
    it.region.close()  # again is no error
    arguments: dict[str, object] = {
        "files": [(1, 1, 0, 0)],
        "file": native.Becomes(),
        "extents": array("I", [0]),
        "groups": array("I", [0]),
        "hand": native.Candidate(),
        "kinds": b"",
        "pages": b"",
        "state": native.STATE_FENCED,
    }
    names = [name for name, _ in inspect.getmembers(Region, inspect.isfunction) if not name.startswith("_")]
    for name in set(names) - {"close", "environment"}:
        call = getattr(it.region, name)
        taken = inspect.signature(call).parameters
        with pytest.raises(RegionClosedError):
            call(**{each: arguments.get(each, 0) for each in taken})
    with pytest.raises(RegionClosedError):
        it.taker.take(0)


# ---- flushes


@pytest.mark.parametrize("groups", [500, 700])
def test_a_flush_of_many_groups_is_split_so_that_each_part_fits(tmp_path: Path, groups: int) -> None:
    it = Recorder(tmp_path, ring_bytes=16 << 20)
    log = LogEnd()
    taker = Taker(it.region, volume=VOLUME, epoch=1, end=log, flush_bytes_max=FLUSH_BYTES)
    for group in range(groups):
        it.region.add_group(group, 1)
    child = spawn(it, f"for g in range({groups}): os.pwrite(f, b'x' * P, g * 64 * P)")
    assert child.wait(timeout=30) == 0
    child.communicate()
    end, pages = 0, set()
    while (taken := taker.take(0)) is not None:
        flush = taken.flush
        log.advance(flush)
        assert flush.start == end < flush.end
        assert sum(len(batches.payload(batch)) for batch in flush.batches.values()) == flush.end - flush.start
        for group, batch in flush.batches.items():
            batches.verify(batch)
            pages |= {(group, record.page) for record in iter_records(batches.payload(batch)) if record.file_id == 1}
        end = flush.end
    assert end == it.region.peek().tail
    assert {(group, group * 64) for group in range(groups)} <= pages
    it.close()


# ---- requests

WAIT_FOR_PAGES = """
for n in range(256):
    if not os.fork():
        os.pread(f, 1, n * 64 * P)
        os._exit(0)
os.write(1, b'.')
time.sleep(60)
"""


@pytest.mark.parametrize("answered", [False, True])
def test_requests_of_killed_processes_are_free_again(recorder: Recorder, answered: bool) -> None:
    path = recorder.mount / "f"
    with path.open("wb") as file:
        file.truncate(256 * 64 * PAGE_BYTES)
    recorder.mounted(path, 500, array("I", [0] * 256))
    parent = recorder.spawn([sys.executable, "-I", "-S", "-c", BEGIN + WAIT_FOR_PAGES], start_new_session=True)
    taken: list[int] = []
    deadline = time.monotonic() + 20
    while len(taken) + recorder.region.poll().requests < 256 and time.monotonic() < deadline:
        select.select([recorder.region.bell_fd], [], [], 0.01)
        if answered:
            taken += [index for index, _ in recorder.region.requests()]
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()
    poll_dead(parent.pid)
    taken += [index for index, _ in recorder.region.requests()]
    assert len(taken) == 256
    for index in taken:
        recorder.region.answer(index, 0)
    assert run(recorder, "print(len(os.pread(f, 1, 0)))") == "1\n"
    recorder.region.reclaim_requests()
    assert recorder.region.requests() == []


def poll_dead(group: int) -> None:
    """Returns when no process of the group is left, zombies included."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass
        select.select([], [], [], 0.01)


def test_a_page_that_was_evicted_meanwhile_is_not_filled_with_what_was_read_before(recorder: Recorder) -> None:
    run(recorder, "os.pwrite(f, b'1' * P, 0)")
    slot, first = recorder.slot("f"), recorder.region.peek().durable
    run(recorder, "os.pwrite(f, b'2' * P, 0)")
    for _ in range(10):
        recorder.evict_some()
    assert recorder.evicted_pages == 1
    with (recorder.mount / "f").open("rb+") as file:
        late = recorder.region.fill(slot, file.fileno(), 0, b"\1", b"1" * PAGE_BYTES, lsn=first)
        assert (late, recorder.region.absent_run(slot, 0, 1)) == (0, (0, 1))
        now = recorder.region.peek().durable
        assert recorder.region.fill(slot, file.fileno(), 0, b"\1", b"2" * PAGE_BYTES, lsn=now) == 0
    assert run(recorder, "print(os.pread(f, 1, 0))") == "b'2'\n"


# ---- the table of files

KEEP_OPEN = """
kept = []
for n in range(300):  # open, so that no inode number comes back
    g = os.open('g%d' % n, os.O_RDWR | os.O_CREAT)
    os.pwrite(g, b'%03d' % n * 100, P * (n % 3))
    kept.append(g)
    os.unlink('g%d' % n)
for n, g in enumerate(kept):
    assert os.pread(g, 3, P * (n % 3)) == b'%03d' % n, n
    os.pwrite(g, b'more', 0)
    assert os.pread(g, 4, 0) == b'more', n
os.pwrite(f, b'kept', 0)
"""


def test_files_that_are_gone_leave_their_places_to_others(tmp_path: Path) -> None:
    it = Recorder(tmp_path, files_max=64)
    run(it, KEEP_OPEN)
    assert it.replay.snapshot() == {"f": b"kept"}
    assert run(it, "print(os.read(f, 9))") == "b'kept'\n"
    it.close()


COLD_THEN_MANY = """
cold = os.open('cold', os.O_RDWR)
assert os.pread(cold, 1, 0) == b'c'
os.unlink('cold')
kept = []
for n in range(100):
    kept.append(os.open('g', os.O_RDWR | os.O_CREAT))
    os.unlink('g')
for at in (0, 5 * P):
    try:
        print(os.pread(cold, 1, at))
    except OSError as error:
        print(error.errno)
"""


def test_a_file_that_is_gone_and_was_never_here_as_a_whole_reads_as_an_error_at_last(tmp_path: Path) -> None:
    it = Recorder(tmp_path, files_max=64)
    run(it, "os.pwrite(os.open('cold', os.O_RDWR | os.O_CREAT), b'c' * 100 * P, 0)")
    for _ in range(20):
        it.evict_some()
    assert it.evicted_pages == 100
    assert run(it, COLD_THEN_MANY).split() == [str(errno.EIO)] * 2
    it.close()


def test_a_full_table_of_files_refuses_new_ones_and_nothing_else(tmp_path: Path) -> None:
    it = Recorder(tmp_path, files_max=16)
    code = """
for n in range(20):
    try:
        os.close(os.open('g%d' % n, os.O_RDWR | os.O_CREAT))
    except OSError as error:
        print(n, error.errno)
        break
os.pwrite(f, b'goes on', 0)
os.unlink('g0')
os.close(os.open('new', os.O_RDWR | os.O_CREAT))
"""
    assert run(it, code).split() == ["15", str(errno.ENOSPC)]
    assert it.replay.snapshot()["f"] == b"goes on"
    assert "g15" not in os.listdir(it.mount)
    it.close()


# ---- the lock

HOLD = """
import ctypes, mmap, os, sys, time
memory = mmap.mmap({fd}, 0)
lock = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + {offset}
assert ctypes.CDLL(None).pthread_mutex_lock(ctypes.c_void_p(lock)) == 0
os.write(1, b'.')
time.sleep(60)
"""
LOCK_OFFSET = 80  # in struct region


def test_a_holder_of_the_lock_that_lives_is_waited_for_and_one_that_dies_is_not(recorder: Recorder) -> None:
    run(recorder, "os.pwrite(f, b'1' * P, 0)")
    slot = recorder.slot("f")
    fd = recorder.region.pass_fds[0]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(fd=fd, offset=LOCK_OFFSET)], pass_fds=[fd], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.read(1) == b"."
    for _ in range(20):
        assert recorder.region.fill(slot, -1, 0, b"\0", b"") == errno.EBUSY
        assert recorder.region.tell_extents(slot, 0, array("I", [0])) == errno.EBUSY
        assert recorder.region.evict(slot, 0, recorder.region.slot(slot).ino, -1, 1 << 40) == 0
    recorder.region.add_group(5, 10)
    assert recorder.region.poll().state == native.STATE_RUNNING
    holder.kill()
    holder.communicate()
    assert recorder.region.fill(slot, -1, 0, b"\0", b"") == errno.EIO
    assert recorder.region.poll().state == native.STATE_POISONED
