"""A copy becomes the primary, and what that may cost. See `succession.py` for the words.

1. **Seal.** The copy is opened for a later generation: by the promises of its nodes, replicators of the time before can
   append no more here, nor can any that is started for that time.
2. **Note** the turn, durably. Nothing of a generation is written before it is noted where it began.
3. A writer opens, for that generation.

Each step may be done again, with the same generation. A *switchover* has one step before, `drain`: the primary is
sealed at its end, which the copy then reaches before it is promoted, so nothing is lost. A *failover* loses what the
old primary had acknowledged beyond the copy's end. Until its nodes can be reached the old primary does not know, and
may acknowledge more: that is the price of a failover by a person's word. What it so wrote stays with it, as a tail.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import NotCompleteError, OutOfRangeError, UsageError
from aurora_ray.replication.readdress import written_s
from aurora_ray.replication.succession import epochs_of
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from aurora_ray.replication.sides import Notes, RegionalVolume
    from aurora_ray.replication.succession import Succession

OPEN_TIMEOUT_S: Final = 60.0
LOOK_TIMEOUT_S: Final = 2.0  # at when the last flush was written; without an answer that is not known


@dataclass(frozen=True, slots=True)
class Loss:
    """What the old primary may have acknowledged and the new one has not: redo in (`after_lsn`, `known_lsn`] for
    certain, and perhaps more.

    `written_s`: when the last flush that is there was written, on the old primary's clock (seconds since 1970; 0: not
    known); `rpo_ms`: from then until the promotion, 0 if nothing can be missing.
    """

    after_lsn: int
    known_lsn: int
    written_s: float
    rpo_ms: float

    @property
    def rpo_bytes(self) -> int:
        """Of redo that is known to be missing."""
        return self.known_lsn - self.after_lsn


@dataclass(frozen=True, slots=True)
class Promotion:
    """A copy that is sealed and whose turn is noted: a writer may open it for `generation`."""

    generation: int
    lsn: int
    succession: Succession
    loss: Loss


async def drain(primary: RegionalVolume, generation: int, timeout_s: float = OPEN_TIMEOUT_S) -> int:
    """Seals the primary, whose engine has stopped, at its end; that end. No writer has it then until one is opened.

    Raises FencedError if it is no primary of that generation any more, QuorumLostError.
    """
    volume = await _open(primary, generation, timeout_s)
    try:
        return volume.vdl
    finally:
        await volume.close()


async def promote(
    copy: RegionalVolume,
    held: Succession,
    generation: int,
    notes: Notes,
    *,
    known_lsn: int = 0,
    drained: bool = False,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> Promotion:
    """Makes the copy, which holds `held`, ready for a writer of `generation`.

    `known_lsn`: up to where the primary is known to have had redo; `drained`: that was its end, as `drain` told it.
    Raises NotCompleteError if the copy's pages are not all there, or after a `drain` not all redo: then nothing has
    changed but that the copy is sealed. Raises FencedError if a later generation has it, UsageError for a generation
    that is none later, QuorumLostError.
    """
    if generation < held.generation:
        raise UsageError(f"generation {generation} does not come after {held.generation}")
    volume = await _open(copy, generation, timeout_s)
    try:
        end = volume.vdl
        if end < copy.first_lsn:
            raise NotCompleteError(
                f"the copy cannot be promoted: of the pages as of LSN {copy.first_lsn} not all are here yet"
            )
        if drained and end < known_lsn:
            raise NotCompleteError(f"the copy ends at LSN {end}, and the primary's end is {known_lsn}: follow it first")
        last_s = 0.0 if drained else await _written_s(copy, end)
    finally:
        await volume.close()
    succession = held if held.generation == generation else held.promoted(end, generation)
    await notes.note_succession(succession)
    began = succession.turns[-1].lsn
    rpo_ms = 0.0 if drained or not last_s else max(0.0, 1e3 * (time.time() - last_s))
    return Promotion(generation, began, succession, Loss(began, max(began, known_lsn), last_s, rpo_ms))


async def _open(side: RegionalVolume, generation: int, timeout_s: float) -> Volume:
    return await Volume.open(
        side.spec,
        side.nodes,
        timeout_s=timeout_s,
        az=side.az,
        epochs=epochs_of(generation),
        abroad=side.abroad,
    )


async def _written_s(copy: RegionalVolume, end_lsn: int) -> float:
    """When the copy's last flush was written; 0 if that cannot be told, because its log is gone or too slow to come."""
    if not end_lsn:
        return 0.0
    follower = Follower.open(copy.spec, copy.nodes, after_lsn=end_lsn - 1, az=copy.az, abroad=copy.abroad)
    async with follower:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return written_s(await anext(follower))
        except (TimeoutError, OutOfRangeError):
            return 0.0
