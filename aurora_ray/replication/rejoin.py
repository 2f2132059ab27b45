"""An old primary becomes a copy again, without its data being copied: its tail is put aside, and it follows.

Its region opens its volume for the new generation, which fences whoever wrote to it (4 of 6 promises) and finds its
end. What lies above the LSN up to which it is the same as the new primary is the *tail*: acknowledged by nobody else,
and no part of the database any more. The volume is forked there: the fork (`volume/fork.py`: hard links, a few small
files) is the region's copy from now on and follows; the old volume stays as it is, tail and all, under its own name. It
can be read at its end, be forked, and be dropped by a person who has seen it. Nobody writes to it any more.

The fork has a name that follows from the old one's and the generation, so this may be done again after any crash.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from aurora_ray.errors import DivergedError
from aurora_ray.replication.succession import common_lsn, epochs_of
from aurora_ray.volume.fork import fork
from aurora_ray.volume.origin import Target
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from aurora_ray.replication.sides import RegionalVolume
    from aurora_ray.replication.succession import Succession
    from aurora_ray.volume.origin import ForkPoint
    from aurora_ray.volume.spec import VolumeSpec

OPEN_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Tail:
    """What only the old primary has: redo in (`after_lsn`, `end_lsn`] of the volume `spec`, which keeps it."""

    spec: VolumeSpec
    after_lsn: int
    end_lsn: int

    @property
    def nbytes(self) -> int:
        """Of redo."""
        return self.end_lsn - self.after_lsn


class Ledger(Protocol):
    """What is noted, durably, before the old volume is left alone."""

    async def note_tail(self, tail: Tail, copy: VolumeSpec, point: ForkPoint) -> None:
        """The region's copy is another volume from now on, forked at `point`; the one before keeps a tail."""


async def put_tail_aside(
    side: RegionalVolume, held: Succession, succession: Succession, ledger: Ledger, timeout_s: float = OPEN_TIMEOUT_S
) -> tuple[RegionalVolume, Tail | None]:
    """What the region follows the new primary's `succession` with: its volume, or if that has a tail a fork of it; and
    the tail, if there is one.

    Raises FencedError if a later generation has the volume, OutOfRangeError if its history does not reach back to where
    it parts (then the copy is to be begun anew), QuorumLostError.
    """
    volume = await Volume.open(
        side.spec,
        side.nodes,
        timeout_s=timeout_s,
        az=side.az,
        epochs=epochs_of(succession.generation),
        abroad=side.abroad,
    )
    try:
        spec, end = volume.spec, volume.vdl
    finally:
        await volume.close()
    common = common_lsn(held, end, succession)
    if common == end:
        return replace(side, spec=spec), None
    child = uuid.uuid5(side.spec.volume_id, f"generation {succession.generation}")
    forked, point = await fork(spec, child, side.nodes, Target(common), written_lsn=end, timeout_s=timeout_s)
    if point.lsn != common:
        raise DivergedError(f"no flush ends at LSN {common}, where the copies part, but at {point.lsn}", point.lsn)
    tail = Tail(spec, common, end)
    await ledger.note_tail(tail, forked, point)
    return replace(side, spec=forked), tail
