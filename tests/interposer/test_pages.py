"""Pages: what a write, a cut and an eviction mean to the log, where the local file does not do what it is told."""

from __future__ import annotations

import subprocess
import sys
import time
import zlib
from array import array
from typing import TYPE_CHECKING

import pytest

from aurora_ray.interposer import native
from aurora_ray.log.layout import RecordType
from tests.interposer.model import PAGE_BYTES
from tests.interposer.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXTENT = 64 * PAGE_BYTES


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    it = Recorder(tmp_path)
    yield it
    it.close()


def run(recorder: Recorder, code: str) -> str:
    """What a program with the interposer prints; `f` and `P` are a file's descriptor and the page size."""
    begin = f"import os\nP = {PAGE_BYTES}\nf = os.open('f', os.O_RDWR | os.O_CREAT)\n"
    recorder.serve(recorder.spawn([sys.executable, "-I", "-S", "-c", begin + code], stdout=subprocess.PIPE))
    return recorder.output.decode()


def content(recorder: Recorder, path: str = "f") -> bytes:
    """A file as the log says."""
    found = recorder.replay.snapshot()[path]
    assert found is not None
    return found


def evict_all(recorder: Recorder) -> None:
    for _ in range(30):
        recorder.evict_some()


# ---- cuts


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize(
    ("size", "groups"),
    [
        (0, [0, 1, 2, 3]),
        (1, [0, 1, 2, 3]),
        (40 * PAGE_BYTES, [0, 1, 2, 3]),
        (EXTENT - 100, [0, 1, 2, 3]),
        (EXTENT, [0, 2, 3]),
        (EXTENT + 1, [0, 2, 3]),
        (EXTENT + 63 * PAGE_BYTES, [0, 2, 3]),
        (3 * EXTENT - 1, [0, 3]),
        (3 * EXTENT, [0]),
    ],
)
def test_a_cut_reaches_every_group_whose_pages_it_changes(
    recorder: Recorder, touched: bool, size: int, groups: list[int]
) -> None:
    for group in (1, 2, 3):
        recorder.region.add_group(group, 10)
    path = recorder.mount / "f"
    with path.open("wb") as file:
        file.truncate(3 * EXTENT + 5)
    recorder.mounted(path, 500, array("I", [1, 2, 3, 0]))
    read = "for at in range(0, 3 * 64 * P, 32 * P):\n os.pread(f, 1, at)\n" if touched else ""
    run(recorder, read + f"os.ftruncate(f, {size})")
    cuts = [record for record in recorder.records if record.type is RecordType.TRUNCATE]
    assert sorted(record.group for record in cuts) == groups
    assert all(int.from_bytes(record.body, "little") == size for record in cuts)


def test_pages_that_were_cut_and_grown_again_stay_until_that_is_durable(recorder: Recorder) -> None:
    run(recorder, "os.pwrite(f, b'old!' * (40 * P // 4), 0)")
    before = recorder.region.base_lsn + recorder.region.peek().durable
    recorder.publishes = False
    run(recorder, "os.ftruncate(f, 10 * P)\nos.posix_fallocate(f, 10 * P, 30 * P)")
    slot = recorder.slot("f")
    hand = native.Candidate()
    for _ in range(3):
        assert recorder.region.evictable(hand, before, 64, 4096) == []
    with (recorder.mount / "f").open("rb+") as file:
        ino = recorder.region.slot(slot).ino
        assert recorder.region.evict(slot, 0, ino, file.fileno(), before) == 0
        after = recorder.region.base_lsn + recorder.region.peek().tail
        assert recorder.region.evict(slot, 0, ino, file.fileno(), after) == 40


def test_a_reader_behind_a_new_end_returns(recorder: Recorder) -> None:
    run(recorder, "os.pwrite(f, b'A' * (128 * P), 0)")
    evict_all(recorder)
    assert recorder.evicted_pages == 128
    serve, cut = recorder.serve_request, False

    def serve_late(request: native.Request) -> int:
        nonlocal cut
        if not cut and request.want == native.WANT_PAGES and request.first >= 64:
            cut = True
            run(recorder, "os.ftruncate(f, 64 * P)")
        return serve(request)

    recorder.serve_request = serve_late  # type: ignore[method-assign]
    assert run(recorder, "print(len(os.pread(f, 16 * P, 96 * P)))") == "0\n"
    assert cut


def test_what_is_used_again_and_again_outlives_what_a_scan_touched_once(recorder: Recorder) -> None:
    run(recorder, "os.pwrite(f, b'x' * (8 * 64 * P), 0)")
    slot, vdl = recorder.slot("f"), recorder.region.peek().durable
    hand = native.Candidate()

    def a_round() -> set[int]:
        return {chunk for _, chunk in recorder.region.evictable(hand, vdl, 64, 9)}  # eight chunks, and the next file

    for chunk in range(8):
        recorder.region.absent_run(slot, chunk * 64, chunk * 64 + 1)  # a look at a page touches it
    evicted: list[set[int]] = []
    for _ in range(4):
        recorder.region.absent_run(slot, 3 * 64, 3 * 64 + 1)
        evicted.append(a_round())
    assert evicted[:2] == [set(), set()]
    assert evicted[2] | evicted[3] == {0, 1, 2, 4, 5, 6, 7}
    later = [a_round() for _ in range(5)]
    assert 3 not in later[0] | later[1]
    assert 3 in later[4]


# ---- what the local disk does not do

LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)
try:
    print(os.pwrite(f, b'B' * {count}, {at}))
except OSError as error:
    print(error.errno)
print(os.fstat(f).st_size)
"""
ENOSPC, EFBIG = 28, 27


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(
    ("at_count_limit", "written"),
    [
        ((3 * PAGE_BYTES, PAGE_BYTES, 3 * PAGE_BYTES + 4096), 0),
        ((3 * PAGE_BYTES, 3 * PAGE_BYTES, 5 * PAGE_BYTES + 1), 2 * PAGE_BYTES),
        ((3 * PAGE_BYTES + 100, 3 * PAGE_BYTES, 5 * PAGE_BYTES + 1), 2 * PAGE_BYTES - 100),
        ((3 * PAGE_BYTES + 100, 1000, 3 * PAGE_BYTES + 500), 0),
        ((8 * PAGE_BYTES, PAGE_BYTES, 8 * PAGE_BYTES + 512), 0),
        ((7 * PAGE_BYTES, 2 * PAGE_BYTES, 8 * PAGE_BYTES + 512), PAGE_BYTES),
        ((9 * PAGE_BYTES + 7, 2 * PAGE_BYTES, 9 * PAGE_BYTES + 512), 0),
        ((7 * PAGE_BYTES + 7, 40 * PAGE_BYTES, 30 * PAGE_BYTES + 512), 23 * PAGE_BYTES - 7),
    ],
)
def test_a_page_of_which_the_disk_takes_a_part_stays_as_it_was(
    recorder: Recorder, absent: bool, at_count_limit: tuple[int, int, int], written: int
) -> None:
    at, count, limit = at_count_limit
    run(recorder, "os.pwrite(f, b'A' * (8 * P), 0)")
    if absent:
        evict_all(recorder)
        assert recorder.evicted_pages == 8
    lines = run(recorder, LIMIT.format(at=at, count=count, limit=limit)).split()
    assert int(lines[0]) == written or (not written and int(lines[0]) in (ENOSPC, EFBIG))
    expected = bytearray(b"A" * (8 * PAGE_BYTES))
    if written:
        expected[at : at + written] = b"B" * written
    assert content(recorder) == expected
    assert int(lines[1]) == len(expected)
    assert int(run(recorder, f"import zlib\nprint(zlib.crc32(os.pread(f, {1 << 20}, 0)))")) == zlib.crc32(expected)
    assert (recorder.mount / "f").read_bytes() == expected


def test_a_page_that_cannot_be_read_locally_is_not_taken_for_zeros(recorder: Recorder) -> None:
    run(recorder, "os.pwrite(f, b'A' * (4 * P), 0)")
    with (recorder.mount / "f").open("rb+") as behind_the_log:
        behind_the_log.truncate(PAGE_BYTES)
    code = "try:\n os.pwrite(f, b'B', 2 * P + 9)\nexcept OSError as e:\n print(e.errno)\n"
    assert run(recorder, code) == "5\n"
    assert content(recorder) == b"A" * (4 * PAGE_BYTES)


# ---- what a program sees of the waiting

QUIETLY = """
import ctypes, signal
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
to = ctypes.create_string_buffer(3 * P)
for call in (
    lambda: libc.pread(f, to, 3 * P, ctypes.c_long(0)),
    lambda: libc.read(f, to, P),
    lambda: libc.pwrite(f, b'c' * 9, ctypes.c_size_t(9), ctypes.c_long(7 * P + 1)),
    lambda: libc.ftruncate(f, ctypes.c_long(5 * P + 1)) + 1,
    lambda: libc.fsync(f) + 1,
):
    ctypes.set_errno(0)
    print(call() > 0, ctypes.get_errno())
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_call_that_succeeds_leaves_errno_as_it_was(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL takes a read for failed that leaves one, however many bytes it got (writeTimeLineHistory)."""
    run(recorder, "os.pwrite(f, b'A' * (8 * P), 0)")
    evict_all(recorder)
    serve = recorder.serve_request

    def slowly(request: native.Request) -> int:
        time.sleep(0.25)  # not synchronisation: longer than a process waits at once
        return serve(request)

    monkeypatch.setattr(recorder, "serve_request", slowly)
    assert run(recorder, QUIETLY).splitlines() == ["True 0"] * 5
    assert recorder.evicted_pages == 8


# ---- many at once

APPEND = """
import sys
a = os.open('f', os.O_WRONLY | os.O_APPEND)
children = []
for child in range(4):
    pid = os.fork()
    if not pid:
        for n in range(150):
            os.write(a, b'%d %d;' % (child, n) * 20)
            if n % 10 == 0:
                os.writev(a, [b'%d' % child, b' v;'])
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_processes_that_append_at_once_overwrite_nothing(recorder: Recorder) -> None:
    run(recorder, APPEND)
    found = content(recorder)
    assert (recorder.mount / "f").read_bytes() == found
    whole = [f"{child} {n};" * 20 for child in range(4) for n in range(150)]
    whole += [f"{child} v;" for child in range(4) for n in range(15)]
    assert len(found) == sum(map(len, whole))
    for each in whole:
        assert each.encode() in found


# ---- threads

SMALL_STACK = """
import ctypes, sys
libc = ctypes.CDLL(None)
attributes, thread = ctypes.create_string_buffer(64), ctypes.c_ulong()
libc.pthread_attr_init(attributes)
assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t({bytes})) == 0
libc.fopen.restype = ctypes.c_void_p
libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
libc.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
stream = libc.fopen(b"stream", b"w")
libc.fwrite(b"x" * 1000, 1, 1000, stream)
def run(function, argument):
    error = libc.pthread_create(ctypes.byref(thread), attributes, function, argument)
    assert error == 0, os.strerror(error)
    libc.pthread_join(thread, None)
run(libc.fflush, ctypes.c_void_p(stream))
os.close(os.open("gone", os.O_CREAT | os.O_RDWR))
if {bytes} > 16384:  # a path takes 4 KiB, and names are compared by path
    run(libc.unlink, ctypes.c_char_p(b"gone"))
"""


@pytest.mark.parametrize("stack_bytes", [16384, 65536])
def test_threads_with_the_smallest_stacks_can_be_made_and_write(recorder: Recorder, stack_bytes: int) -> None:
    run(recorder, SMALL_STACK.format(bytes=stack_bytes))
    assert content(recorder, "stream") == b"x" * 1000
    assert ("gone" in recorder.replay.snapshot()) == (stack_bytes == 16384)
