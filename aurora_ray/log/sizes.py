"""Sizes and counts that more than one layer must agree on; `tests/log/test_sizes.py` holds them against the C sources.

Copies and quorums are those of Aurora (SIGMOD 2017, section 2): six copies, two in each of three AZs. A write is
durable on four, so it outlasts an AZ; any three copies show it, so it is read with an AZ and one more copy lost.
"""

from __future__ import annotations

from typing import Final

AZ_COUNT: Final = 3
COPIES_PER_AZ: Final = 2
COPIES: Final = AZ_COUNT * COPIES_PER_AZ  # of a protection group


def write_quorum(copies: int) -> int:
    """How many of `copies` must have a batch before it is durable: 4 of 6."""
    return copies // 2 + 1


def read_quorum(copies: int) -> int:
    """How many of `copies` always include one of any write quorum: 3 of 6."""
    return copies - write_quorum(copies) + 1


WRITE_QUORUM: Final = write_quorum(COPIES)
READ_QUORUM: Final = read_quorum(COPIES)
assert WRITE_QUORUM + READ_QUORUM > COPIES, "a read quorum must meet every write quorum"  # noqa: S101
assert 2 * WRITE_QUORUM > COPIES, "two write quorums must meet"  # noqa: S101
assert COPIES - COPIES_PER_AZ >= WRITE_QUORUM, "writes must go on with one AZ lost"  # noqa: S101
assert COPIES - COPIES_PER_AZ - 1 >= READ_QUORUM, "reads must go on with one AZ and one node lost"  # noqa: S101

EXTENT_PAGES: Final = 64  # the unit in which a file's pages are assigned to protection groups
NO_GROUP: Final = 0xFFFFFFFF  # of an extent that has not been assigned

VOLUME_BYTES_MAX: Final = 128 << 40
GROUPS_MAX: Final = 16384  # protection groups of a volume: 128 TiB in groups of 10 GiB are 13,108

PAGE_BYTES_MIN: Final = 512
PAGE_BYTES_MAX: Final = 16 << 10  # InnoDB's; the interposer compares and logs a page in buffers of this size
PAGE_BYTES_ALLOWED: Final = (PAGE_BYTES_MIN, 1024, 2048, 4096, 8192, PAGE_BYTES_MAX)
assert PAGE_BYTES_MAX <= 0xFFFF, "offsets and lengths of a page's ranges are u16"  # noqa: S101
