"""Room on a storage node's disk: what the node says of it, before and while it refuses redo."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

LOW_FACTOR: Final = 4  # times the reserve
AMPLE_FACTOR: Final = 16  # ... from which on history is kept for as long as anybody asks for


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

    @property
    def history_share(self) -> float:
        """How much of the history beyond the least there is room for, 0 to 1: less and less as the disk fills up."""
        low, ample = LOW_FACTOR * self.reserve_bytes, AMPLE_FACTOR * self.reserve_bytes
        if self.state is not SpaceState.OK:
            return 0.0
        return 1.0 if self.free_bytes >= ample else (self.free_bytes - low) / (ample - low)

    def history_bytes(self, wanted: int, least: int) -> int:
        """Of how much log history is kept where `wanted` is asked for; never less than `least`, or than `wanted`."""
        return wanted if wanted <= least else least + int((wanted - least) * self.history_share)


def space_of(free_bytes: int, reserve_bytes: int, *, refuses: bool) -> Space:
    """`refuses`: the node takes no redo at the moment."""
    if free_bytes < reserve_bytes or (refuses and not free_bytes):
        state = SpaceState.FULL
    elif refuses:
        state = SpaceState.FAILING
    else:
        state = SpaceState.LOW if free_bytes < LOW_FACTOR * reserve_bytes else SpaceState.OK
    return Space(state, free_bytes, reserve_bytes)
