"""What long-lived processes ask of the kernel."""

import resource
import subprocess
import sys

from aurora_ray.rpc.process import raise_descriptor_limit

# Blocks of C's allocator, of which the last one stays: all below it is free, and the end of the heap is not.
FRAGMENTED = """
import ctypes
from aurora_ray.rpc.process import give_memory_back
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [c.malloc(50_000) for _ in range(1000)]
for block in blocks: ctypes.memset(block, 1, 50_000)
for block in blocks[:-1]: c.free(block)
def resident_kib(): return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
before = resident_kib()
give_memory_back()
print(before - resident_kib())
"""


def test_memory_that_is_free_between_what_is_used_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000


def test_the_soft_limit_of_open_files_becomes_the_hard_one_and_is_never_lowered() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
        raised = raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)
        assert raised == min(hard if hard != resource.RLIM_INFINITY else 1 << 20, 1 << 20)
        assert raise_descriptor_limit() == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
