"""Several processes at the same files, with evictions in between: what they read in the end is what the log says."""

from __future__ import annotations

import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.interposer.model import PAGE_BYTES
from tests.interposer.recorder import Recorder

if TYPE_CHECKING:
    from pathlib import Path

WORK = f"""
import os, random, sys
P = {PAGE_BYTES}
for child in range(3):
    if os.fork() == 0:
        break
else:
    failed = [os.wait()[1] for _ in range(3)]
    sys.exit(any(failed))
draw = random.Random(sys.argv[1] + str(child))
stale = []
def one(step):
    name = 'f%d' % draw.randrange(4)
    f = os.open(name, os.O_RDWR | os.O_CREAT | (os.O_APPEND if draw.random() < 0.1 else 0))
    size = os.fstat(f).st_size
    at = draw.randrange(min(size, 200 * P) + 3 * P)
    what = draw.random()
    if what < 0.5:
        at -= at % P if draw.random() < 0.5 else 0
        os.pwrite(f, bytes([child + 1, step % 256]) * draw.choice([1, 50, P // 2, 4 * P]), at)
    elif what < 0.6:
        os.ftruncate(f, draw.choice([0, at, at - at % P]))
    elif what < 0.65:
        os.posix_fallocate(f, 0, at + 1)
    elif what < 0.7:
        try:
            draw.choice([os.unlink, lambda name: os.rename(name, 'f%d' % draw.randrange(4))])(name)
        except FileNotFoundError:
            pass
    else:
        os.pread(f, 9 * P, at)
    if draw.random() < 0.2:
        stale.append(f)  # perhaps of a file that goes away
    else:
        os.close(f)
    if stale and draw.random() < 0.3:
        g = draw.choice(stale)
        os.pread(g, P, 0)
        os.pwrite(g, b'stale', draw.randrange(3 * P))
for step in range(150):
    try:
        one(step)
    except OSError as error:  # a file that is gone, has lost its place, and was not here as a whole
        if error.errno != 5 or sys.argv[2] != 'small':
            raise
"""
READ = """
import os, zlib
for name in sorted(os.listdir('.')):
    print(name, zlib.crc32(open(name, 'rb').read()))
"""


@pytest.mark.parametrize("seed", range(3))
def test_processes_that_change_the_same_files_leave_what_the_log_says(tmp_path: Path, seed: int) -> None:
    table = "small" if seed % 2 else "large"
    it = Recorder(tmp_path, seed=seed, evict=True, files_max=24 if table == "small" else 4096)
    it.serve(it.spawn([sys.executable, "-I", "-S", "-c", WORK, str(seed), table]))
    for _ in range(20):
        it.evict_some()
    assert it.evicted_pages > 0
    it.serve(it.spawn([sys.executable, "-I", "-S", "-c", READ], stdout=subprocess.PIPE))
    expected = {name: zlib.crc32(content or b"") for name, content in it.replay.snapshot().items()}
    found = dict(line.split() for line in it.output.decode().splitlines())
    assert {name: int(crc) for name, crc in found.items()} == expected
    it.close()
