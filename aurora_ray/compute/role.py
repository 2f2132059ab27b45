"""The kinds of instance, all that there are: whoever does something with an instance asks for its kind first."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What an instance does with its cluster's volume."""

    WRITER = "writer"  # the one that has the volume's epoch
    READER = "reader"  # follows the writer on a read-only mount of the same volume
    STATIC = "static"  # reads the volume as of one LSN
    REPLICA = "replica"  # follows by the engine's own replication
