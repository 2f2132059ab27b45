"""What an instance's size means for MariaDB: one table.

| setting | of memory M | from | to | why |
|---|---|---|---|---|
| innodb_buffer_pool_size | M/2 | 32 MiB | - | InnoDB's own; the page cache comes second |
| aria_pagecache_buffer_size | M/64 | 8 MiB | 128 MiB | Aria holds the system's tables, and temporary ones |
| key_buffer_size | M/64 | 8 MiB | 64 MiB | MyISAM's indexes, which few have |
| max_connections | M/8 MiB | 100 | 5000 | a session takes a few MiB |
| tmp_table_size, max_heap_table_size | M/64 | 4 MiB | 64 MiB | each temporary table in memory |
| table_open_cache | M/1 MiB | 400 | 4000 | |
| thread_cache_size | max_connections/4 | 16 | 256 | |

The redo log has one size for all (settings.py), since a start with another one writes it anew. Any of these that a user
sets by `aurora parameters` counts instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.config import MIB

if TYPE_CHECKING:
    from aurora_ray.engine.sizes import InstanceSize

CONNECTIONS_MIN: Final = 100
CONNECTIONS_MAX: Final = 5000


def size_settings(size: InstanceSize) -> dict[str, str]:
    """Names and values for a size, by the table above."""
    memory = size.least_bytes or size.memory_bytes  # buffers are not given back while a server runs
    most = size.most_bytes or size.memory_bytes
    connections = _within(most // (8 * MIB), CONNECTIONS_MIN, CONNECTIONS_MAX)
    in_memory = _within(memory // 64, 4 * MIB, 64 * MIB)
    return {
        "innodb_buffer_pool_size": str(max(memory // 2, 32 * MIB) // MIB * MIB),
        "aria_pagecache_buffer_size": str(_within(memory // 64, 8 * MIB, 128 * MIB)),
        "key_buffer_size": str(_within(memory // 64, 8 * MIB, 64 * MIB)),
        "max_connections": str(connections),
        "tmp_table_size": str(in_memory),
        "max_heap_table_size": str(in_memory),
        "table_open_cache": str(_within(memory // MIB, 400, 4000)),
        "thread_cache_size": str(_within(connections // 4, 16, 256)),
    }


def _within(wanted: int, at_least: int, at_most: int) -> int:
    return min(max(wanted, at_least), at_most)
