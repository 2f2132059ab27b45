"""A change of the primary, cut off after each of its effects: it comes to its end, and loses what it says, no more."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import UsageError
from aurora_ray.replication.succession import Succession, common_lsn, epochs_of, generation_of, next_generation
from aurora_ray.replication.turnover import Seen, Step, Turnover, Way, next_step, taken_back

if TYPE_CHECKING:
    from collections.abc import Callable

EAST, WEST = "us-east-1", "eu-west-1"
SLOTS = {EAST: 0, WEST: 1}


class CrashError(Exception):
    """The control plane ends here."""


@dataclass
class Region:
    """What is durable in a region, and what runs in it."""

    log: list[int] = field(default_factory=list)  # the generation of each flush
    promised: int = 0  # epoch
    held: Succession = field(default_factory=Succession)
    writer: int = 0  # the epoch of a writer that runs
    replicator: int = 0
    tails: list[int] = field(default_factory=list)

    def open(self, generation: int) -> int:
        allowed = epochs_of(generation)
        self.promised = max(allowed.start, self.promised + 1)
        assert self.promised < allowed.stop, "a later generation has it"
        return self.promised


class World:
    """Two regions, east the primary with clients at work; `effects` counts what becomes true for good."""

    def __init__(self, *, lag: int, crash_at: int = -1, broken: Callable[[Turnover, Seen], Step] = next_step) -> None:
        self.regions = {EAST: Region(log=[0] * 20), WEST: Region(log=[0] * (20 - lag))}
        self.regions[EAST].writer = self.regions[EAST].open(0)
        self.regions[WEST].replicator = self.regions[WEST].open(0)
        self.noted: Turnover | None = None
        self.effects, self.crash_at, self.decide = 0, crash_at, broken
        self.reachable = True
        self.lost = 0

    def effect(self) -> None:
        self.effects += 1
        if self.effects == self.crash_at:
            raise CrashError

    def seen(self, turnover: Turnover) -> Seen:
        old, new = self.regions[turnover.old], self.regions[turnover.new]
        return Seen(
            old_reachable=self.reachable,
            old_runs=old.writer == old.promised if self.reachable else True,
            old_follows=bool(old.replicator) and old.replicator == old.promised,
            old_generation=old.held.generation,
            new_generation=new.held.generation,
            new_lsn=len(new.log) if bool(new.replicator) and new.replicator == new.promised else 0,
            new_runs=bool(new.writer) and new.writer == new.promised,
        )

    def go_on(self, turnover: Turnover) -> Turnover:
        """Until nothing is left to do, or what is left waits for others; as a control plane that was started anew."""
        for _ in range(50):
            self.clients_and_replicators()
            step = self.decide(turnover, self.seen(turnover))
            if step in (Step.DONE, Step.WAIT_FOR_OLD):
                return turnover
            turnover = self.do(step, turnover)
            self.noted = turnover
        raise AssertionError(f"it does not come to an end: {step}")

    def do(self, step: Step, turnover: Turnover) -> Turnover:
        old, new = self.regions[turnover.old], self.regions[turnover.new]
        if step is Step.STOP_OLD:
            old.writer = 0
            self.effect()
        elif step is Step.DRAIN_OLD:
            old.open(old.held.generation)
            self.effect()
            turnover = turnover.drained(len(old.log))
        elif step is Step.NOTE_COPY:
            self.effect()
            turnover = turnover.complete()
        elif step is Step.PROMOTE_NEW:
            new.open(turnover.generation)
            self.effect()
            self.lost = len(old.log) - len(new.log)
            new.held = new.held.promoted(len(new.log), turnover.generation)
            self.effect()
        elif step is Step.OPEN_NEW:
            new.writer = new.open(turnover.generation)
            self.effect()
        elif step is Step.FOLLOW_WITH_OLD:
            old.open(turnover.generation)
            self.effect()
            common = common_lsn(old.held, len(old.log), new.held)
            if common < len(old.log):
                old.tails.append(len(old.log) - common)
                del old.log[common:]
            old.held = new.held
            self.effect()
            old.replicator = old.open(turnover.generation)
            self.effect()
        return turnover

    def clients_and_replicators(self) -> None:
        for region in self.regions.values():
            if region.writer and region.writer == region.promised:
                region.log.append(generation_of(region.writer))
        for region, other in ((self.regions[EAST], self.regions[WEST]), (self.regions[WEST], self.regions[EAST])):
            if region.replicator and region.replicator == region.promised:
                at = len(region.log)
                # What came to its source in a later generation, a replicator refuses.
                region.log += [flush for flush in other.log[at : at + 2] if flush <= generation_of(region.replicator)]


def turnover(way: Way) -> Turnover:
    return Turnover(way, EAST, WEST, next_generation(0, SLOTS[WEST]))


def run(way: Way, lag: int, crash_at: int = -1, broken: Callable[[Turnover, Seen], Step] = next_step) -> World:
    world = World(lag=lag, crash_at=crash_at, broken=broken)
    world.noted = turnover(way)
    try:
        world.go_on(world.noted)
    except CrashError:
        world.crash_at = -1
        world.go_on(world.noted)
    east, west = world.regions[EAST], world.regions[WEST]
    for _ in range(30):
        world.clients_and_replicators()
    assert west.writer == west.promised
    assert east.writer != east.promised
    assert east.held == west.held
    assert east.log == west.log[: len(east.log)]
    assert len(west.log) - len(east.log) <= 1
    # An old primary writes on until it is stopped: more than is known when the copy is promoted.
    assert sum(east.tails) >= world.lost, "what is lost is kept"
    assert len(east.tails) == (way is Way.FAILOVER)
    return world


@pytest.mark.parametrize("lag", [0, 8])
@pytest.mark.parametrize("way", Way)
def test_it_goes_on_from_each_crash_point(way: Way, lag: int) -> None:
    count = run(way, lag).effects
    assert count >= 5
    for crash_at in range(1, count + 1):
        world = run(way, lag, crash_at)
        assert way is Way.FAILOVER or world.lost == 0, f"crash after effect {crash_at}"


def test_a_switchover_that_does_not_wait_is_found() -> None:
    def hasty(intended: Turnover, seen: Seen) -> Step:
        step = next_step(intended, seen)
        return Step.PROMOTE_NEW if step is Step.WAIT_FOR_COPY else step

    with pytest.raises(AssertionError):
        run(Way.SWITCHOVER, 8, broken=hasty)


def test_a_failover_serves_while_the_old_region_is_away_and_takes_it_in_later() -> None:
    world = World(lag=3)
    world.reachable = False
    world.noted = world.go_on(turnover(Way.FAILOVER))
    assert world.seen(world.noted).new_runs
    before = len(world.regions[EAST].log)
    world.clients_and_replicators()
    assert len(world.regions[EAST].log) == before + 1, "the old primary does not know"
    world.reachable = True
    world.go_on(world.noted)
    (tail,) = world.regions[EAST].tails
    assert tail > before - world.regions[WEST].held.turns[-1].lsn


@pytest.mark.parametrize("promoting", [False, True])
def test_a_switchover_is_taken_back(*, promoting: bool) -> None:
    world = World(lag=2)
    intended = turnover(Way.SWITCHOVER)
    intended = world.do(Step.STOP_OLD, intended)
    intended = world.do(Step.DRAIN_OLD, intended)
    if promoting:  # the copy was sealed for it, and the turn was not noted
        world.regions[WEST].open(intended.generation)
    back = taken_back(intended, world.seen(intended), SLOTS[EAST])
    world.go_on(back)
    for _ in range(20):
        world.clients_and_replicators()
    east, west = world.regions[EAST], world.regions[WEST]
    assert east.writer == east.promised
    assert west.log == east.log[: len(west.log)]
    assert west.held == east.held
    assert not east.tails + west.tails
    with pytest.raises(UsageError):
        next_step(intended, world.seen(intended))  # it is void
    seen = replace(world.seen(back), new_generation=back.generation)
    with pytest.raises(UsageError):
        taken_back(back, seen, SLOTS[WEST])


def test_it_is_noted_as_plain_values_and_has_one_end() -> None:
    intended = turnover(Way.SWITCHOVER).drained(80)
    assert Turnover.from_dict(intended.to_dict()) == intended.drained(80)
    assert Turnover.from_dict(intended.complete().to_dict()) == intended.complete() != intended
    with pytest.raises(UsageError):
        intended.drained(88)
