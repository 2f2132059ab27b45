"""The kinds of instance, all that there are, and what tells them apart.

Whoever does something with an instance asks its kind for a trait; nobody compares kinds (tests/house). So a new kind is
a row of the table here, an entry in `kinds.py`, and a case wherever `match` says that one is missing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Traits(NamedTuple):
    """Of a kind of instance."""

    owns: bool = False  # seals the volume and appends to it: a cluster has one of those
    engine: bool = False  # runs an engine
    writes: bool = False  # its engine takes what clients write: nothing is newer, and its loss is an outage
    reads: bool = False  # its engine follows the writer, and takes what clients read
    copies: bool = False  # copies the redo of another region
    archives: bool = False  # puts the volume into object storage

    @property
    def addressed(self) -> bool:
        """Whether it has an engine, or gets one when its kind changes: so it has an address, a size, and is paused."""
        return self.engine or self.owns


class Role(StrEnum):
    """What an instance does with its cluster's volume."""

    WRITER = "writer"  # the one that has the volume's epoch
    READER = "reader"  # follows the writer on a read-only mount of the same volume
    STATIC = "static"  # reads the volume as of one LSN
    BACKUP = "backup"  # has no engine: puts the volume's log and pages into object storage
    REPLICA = "replica"  # follows by the engine's own replication
    REPLICATOR = "replicator"  # has the epoch of a secondary region's volume; no engine, it copies the primary's redo

    @property
    def traits(self) -> Traits:
        """What it is and is not."""
        return _TRAITS[self]


_TRAITS: Final = {
    Role.WRITER: Traits(owns=True, engine=True, writes=True),
    Role.READER: Traits(engine=True, reads=True),
    Role.STATIC: Traits(engine=True),
    Role.BACKUP: Traits(archives=True),
    Role.REPLICA: Traits(engine=True),
    Role.REPLICATOR: Traits(owns=True, copies=True),
}
assert _TRAITS.keys() == set(Role), "each kind says what it is"  # noqa: S101
