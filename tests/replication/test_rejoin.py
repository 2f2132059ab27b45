"""An old primary comes back: fenced, its tail kept for inspection, and a copy again without a copy being made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import FencedError
from aurora_ray.replication.promotion import drain, promote
from aurora_ray.replication.rejoin import Tail, put_tail_aside
from aurora_ray.replication.succession import epochs_of, next_generation
from tests.replication.regions import Copy, Scribe, caught_up, content_of, log_of, replicating, two_regions

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.volume.origin import ForkPoint
    from aurora_ray.volume.spec import VolumeSpec

pytestmark = pytest.mark.allowed_logs("due to server stop")

LATER = next_generation(0, slot=1)


class Book:
    """A ledger, which a crash can leave without its last line."""

    def __init__(self, copy: Copy, *, crash: bool = False) -> None:
        self.tails: list[Tail] = []
        self._copy, self._crash = copy, crash

    async def note_tail(self, tail: Tail, copy: VolumeSpec, point: ForkPoint) -> None:
        if self._crash:
            raise ConnectionAbortedError("before it was noted")
        self.tails.append(tail)
        self._copy.cluster.spec = copy


async def test_an_old_primary_rejoins_and_its_tail_stays(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (primary, copy):
        scribe = Scribe(await primary.cluster.open(epochs=epochs_of(0)), seed=1)
        async with replicating(primary, copy) as replicator:
            common = await scribe.write(30)
            await caught_up(replicator, common)
        end = await scribe.write(10)
        before, old = await content_of(primary, end), primary.cluster.spec
        promotion = await promote(copy.side, copy.held, LATER, copy, known_lsn=end)
        assert promotion.lsn == common
        west = Scribe(await copy.cluster.open(epochs=epochs_of(LATER)), seed=2)
        await west.write(10)

        with pytest.raises(ConnectionAbortedError):
            await put_tail_aside(primary.side, primary.held, copy.held, Book(primary, crash=True))
        with pytest.raises(FencedError):
            await scribe.write(1)
        book = Book(primary)
        side, tail = await put_tail_aside(primary.side, primary.held, copy.held, book)
        assert tail is not None
        assert book.tails == [tail]
        assert (tail.after_lsn, tail.end_lsn, tail.spec.volume_id) == (common, end, old.volume_id)
        assert tail.nbytes == promotion.loss.rpo_bytes, "what was said to be missing is what is kept"
        assert side.spec == primary.cluster.spec != old

        async with replicating(copy, primary) as replicator:
            written = await west.write(10)
            await caught_up(replicator, written)
            assert await log_of(primary, common, written) == await log_of(copy, common, written)
            for lsn in (common, written):
                assert await content_of(primary, lsn) == await content_of(copy, lsn)
        primary.cluster.spec = old
        assert await content_of(primary, end) == before, "the tail can be looked at"
        with pytest.raises(FencedError):
            await primary.cluster.open(epochs=epochs_of(0))


async def test_one_without_a_tail_follows_as_it_is(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (primary, copy):
        scribe = Scribe(await primary.cluster.open(epochs=epochs_of(0)), seed=3)
        async with replicating(primary, copy) as replicator:
            await caught_up(replicator, await scribe.write(5))
        promotion = await promote(copy.side, copy.held, LATER, copy)
        book = Book(primary)
        side, tail = await put_tail_aside(primary.side, primary.held, promotion.succession, book)
        assert tail is None
        assert not book.tails
        assert side.spec == primary.cluster.spec
        later = Scribe(await copy.cluster.open(epochs=epochs_of(LATER)), seed=4)
        async with replicating(copy, primary) as replicator:
            await caught_up(replicator, await later.write(5))


async def test_switchovers_and_a_failover_on_real_nodes(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (east, west):
        generation, scribe = 0, Scribe(await east.cluster.open(epochs=epochs_of(0)), seed=1)
        for number in range(4):
            old, new = (east, west) if number % 2 == 0 else (west, east)
            fails = number == 2
            async with replicating(old, new) as replicator:
                await caught_up(replicator, await scribe.write(5))
                held = replicator.status().lsn
                if not fails:
                    await scribe.write(3)
                    held = await drain(old.side, generation)
                    await caught_up(replicator, held)
            known = await scribe.write(4) if fails else held  # nobody else has this
            generation = next_generation(generation, slot=1 - number % 2)
            promotion = await promote(new.side, new.held, generation, new, known_lsn=known, drained=not fails)
            assert promotion.lsn == held
            assert promotion.loss.rpo_bytes == known - held
            scribe = Scribe(await new.cluster.open(epochs=epochs_of(generation)), seed=number)
            _, kept = await put_tail_aside(old.side, old.held, new.held, Book(old))
            assert (0 if kept is None else kept.nbytes) == known - held
        async with replicating(east, west) as replicator:
            lsn = await scribe.write(5)
            await caught_up(replicator, lsn)
            assert await log_of(west, held, lsn) == await log_of(east, held, lsn)
            assert await content_of(west, lsn) == await content_of(east, lsn)
            assert len(west.held.turns) == 5
