"""The kinds of instance, all that there are: whoever does something with an instance asks for its kind first."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What an instance does with its cluster's volume."""

    WRITER = "writer"  # the one that has the volume's epoch
    READER = "reader"  # follows the writer on a read-only mount of the same volume
    STATIC = "static"  # reads the volume as of one LSN
    BACKUP = "backup"  # has no engine: puts the volume's log and pages into object storage
    REPLICA = "replica"  # follows by the engine's own replication
    REPLICATOR = "replicator"  # has the epoch of a secondary region's volume; no engine, it copies the primary's redo


WITHOUT_ENGINE: Final = frozenset({Role.BACKUP, Role.REPLICATOR})

OWNERS: Final = frozenset({Role.WRITER, Role.REPLICATOR})
"""Those that seal a volume and append to it: a cluster has one of them."""
