"""Compression by several threads at once, as when two segments of a node write their file tables."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from aurora_ray.log.compression import compress, decompress

FRAMES = 300


def work(seed: int) -> bool:
    data = bytes((seed * 31 + n * n) % 251 for n in range(40_000)) * 4
    return all(decompress(compress(data), len(data)) == data for _ in range(FRAMES))


def test_threads_do_not_share_a_compressor() -> None:
    """In a process of its own: one that is shared ends it."""
    done = subprocess.run([sys.executable, "-m", __name__], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


if __name__ == "__main__":
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
