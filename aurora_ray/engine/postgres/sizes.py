"""What an instance's size means for PostgreSQL: one table.

| setting | of memory M and CPUs C | from | to | why |
|---|---|---|---|---|
| shared_buffers | M/4 | 32 MiB | - | the mount's files are in the page cache as well, which has the rest |
| effective_cache_size | M·3/4 | 96 MiB | - | buffers and page cache together |
| work_mem | M/512 | 4 MiB | 64 MiB | for each sort and hash, of which a session may have several |
| maintenance_work_mem | M/16 | 64 MiB | 1 GiB | one index build, and each autovacuum worker |
| max_connections | M/8 MiB | 100 | 5000 | a session takes a few MiB |
| max_wal_size | M/4 | 256 MiB | 512 MiB | at most what a failover should have to replay |
| max_worker_processes | C+2 | 10 | 66 | 8, and our module's two (src/workers.c) |
| max_parallel_workers | C | 2 | 64 | |
| max_parallel_workers_per_gather | C/2 | 1 | 4 | |
| io_workers (18 on) | 2·C | 8 | 32 | what scans of absent pages have in flight |

Of an instance whose capacity changes while it runs, shared_buffers follow the least M that it may have and
max_connections the most (engine/sizes.py says why), so neither changes; the others do.

C are the machine's CPUs: idle ones are there for whoever wants them. The mount's local cache is on disk and follows
what is free there (mount/evictor.py). Any of these that a user sets, by `aurora parameters` or ALTER SYSTEM, counts
instead.

A hot standby must have at least its writer's max_connections and max_worker_processes: a reader takes the larger of
its own and the writer's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from aurora_ray.config import GIB, KIB, MIB

if TYPE_CHECKING:
    from aurora_ray.engine.sizes import InstanceSize

CONNECTIONS_MIN: Final = 100
CONNECTIONS_MAX: Final = 5000
FIRST_WITH_IO_WORKERS: Final = 18


def size_settings(size: InstanceSize, *, major: int) -> dict[str, str]:
    """Names and values for a size, by the table above."""
    memory, cpus = size.memory_bytes, math.ceil(size.machine_cpus)
    settings = {
        "shared_buffers": _kib((size.least_bytes or memory) // 4, 32 * MIB),
        "effective_cache_size": _kib(memory * 3 // 4, 96 * MIB),
        "work_mem": _kib(memory // 512, 4 * MIB, 64 * MIB),
        "maintenance_work_mem": _kib(memory // 16, 64 * MIB, GIB),
        "max_connections": _count((size.most_bytes or memory) // (8 * MIB), CONNECTIONS_MIN, CONNECTIONS_MAX),
        "max_wal_size": _kib(memory // 4, 256 * MIB, 512 * MIB),
        "max_worker_processes": _count(cpus + 2, 10, 66),
        "max_parallel_workers": _count(cpus, 2, 64),
        "max_parallel_workers_per_gather": _count(cpus // 2, 1, 4),
    }
    if major >= FIRST_WITH_IO_WORKERS:
        settings["io_workers"] = _count(2 * cpus, 8, 32)
    return settings


def _kib(wanted_bytes: int, at_least: int, at_most: int | None = None) -> str:
    value = max(wanted_bytes, at_least)
    return f"{(value if at_most is None else min(value, at_most)) // KIB}kB"


def _count(wanted: int, at_least: int, at_most: int) -> str:
    return str(min(max(wanted, at_least), at_most))
