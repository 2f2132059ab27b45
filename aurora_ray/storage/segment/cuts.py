"""Truncations and drops of files, which hide older versions of pages."""

from __future__ import annotations

from typing import NamedTuple


class FileCut(NamedTuple):
    """From `lsn` on, bytes of the file at or above `new_size` are zeros until written again."""

    lsn: int
    new_size: int
    dropped: bool
