"""Room on a storage node's disk: what the node says of it, before and while it refuses redo."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

LOW_FACTOR: Final = 4  # times the reserve


class SpaceState(StrEnum):
    """What there is room for."""

    OK = "ok"
    LOW = "low"  # redo is taken; near the reserve
    FULL = "full"  # less than the reserve is free: redo is refused until there is room again
    GONE = "gone"  # there is no data directory: it is made anew, and what it held comes from the peers
    FAILING = "failing"  # a write failed though there seems to be room: redo is refused, opening anew is tried


class Space(NamedTuple):
    """Of the file system that holds the data directory."""

    state: SpaceState
    free_bytes: int
    reserve_bytes: int


def space_of(free_bytes: int, reserve_bytes: int, *, refuses: bool) -> Space:
    """`refuses`: the node takes no redo at the moment."""
    if free_bytes < reserve_bytes or (refuses and not free_bytes):
        state = SpaceState.FULL
    elif refuses:
        state = SpaceState.FAILING
    else:
        state = SpaceState.LOW if free_bytes < LOW_FACTOR * reserve_bytes else SpaceState.OK
    return Space(state, free_bytes, reserve_bytes)
