"""With a lease no two regions acknowledge commits at a time, in whatever order messages, clocks and ends come."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from aurora_ray.replication import lease
from aurora_ray.replication.lease import (
    Promise,
    asked_every_s,
    blocking,
    bounded_until,
    held_until,
    majority,
    may_grant,
)
from aurora_ray.replication.succession import next_generation

LEASE_S = 10.0
BUGS = (
    "counts_from_the_answer",
    "forgets_refusals",
    "knows_nothing_after_a_restart",
    "asks_a_majority_less",
    "no_drift",
    "is_alone_among_many",
    "is_alone_though_it_asked_for_way",
    "is_bound_by_old_promises_only",
    "steps_down_and_relies_on_a_lease",
    "tells_before_it_is_bound",
)


def test_majorities_and_those_that_are_part_of_each() -> None:
    assert [(n, majority(n), blocking(n)) for n in range(1, 7)] == [
        (1, 1, 1),
        (2, 2, 1),
        (3, 2, 2),
        (4, 3, 2),
        (5, 3, 3),
        (6, 4, 3),
    ]
    for n in range(1, 12):
        assert majority(n) + blocking(n) > n, "they meet"


def test_a_lease_is_as_long_as_the_last_that_is_needed_granted() -> None:
    assert held_until([1.0, 5.0, 3.0], 4, LEASE_S) == 3.0 + LEASE_S
    assert held_until([5.0], 4, LEASE_S) == float("-inf")
    assert held_until([], 1, LEASE_S) == float("inf")


def test_regions_ask_often_enough_for_what_is_as_short_as_it_may_be() -> None:
    for lease_s in (lease.LEASE_MIN_S, LEASE_S, lease.LEASE_MAX_S):
        for silence_s in (0.0, lease.LEASE_MIN_S, lease.LEASE_MAX_S):
            asked_s = asked_every_s(lease_s, silence_s)
            assert 4 * asked_s < min(lease_s, silence_s or lease_s)
            assert asked_s <= lease.ASKED_EVERY_S
    assert asked_every_s(0.0, 0.0) == lease.ASKED_EVERY_S


def test_commits_wait_while_every_secondary_lags_more_than_the_bound() -> None:
    assert bounded_until([(100.0, 3.0), (90.0, 0.5)], 20.0) == 117.0
    assert bounded_until([], 20.0) == float("-inf")


@dataclass
class Region:
    slot: int
    speed: float  # of its clock
    began_s: float = 0.0  # by its clock
    generation: int = 0
    refuses_below: int = 0  # durable
    takes: int = 0  # durable
    promise: Promise | None = None
    is_primary: bool = False
    granted: dict[int, float] = field(default_factory=dict)
    fenced: set[int] = field(default_factory=set)
    leased: bool = True  # durable: it knows of a lease that is in force
    alone: bool = False  # durable: it took over from the other one of two, and acknowledges without a lease
    asked_way: int = 0  # durable
    begun_s: float = float("-inf")  # until then its writer acknowledges from when the lease was declared again


class World:
    """Control planes ask each other, may end at any moment, and forget what they did not note. Messages take their
    time, and may never arrive."""

    def __init__(self, seed: int, bug: str = "") -> None:
        self.random = random.Random(seed)
        self.bug = bug
        self.now_s = 0.0
        count = self.random.randint(2, 5)
        drift = 0.09 if bug == "no_drift" else lease.DRIFT / 2.5
        self.regions = [Region(slot, 1 + self.random.uniform(-drift, drift)) for slot in range(count)]
        self.regions[0].is_primary = True
        self.cut = [[False] * count for _ in range(count)]
        self.promotions = self.alone = 0

    def clock(self, region: Region) -> float:
        return self.now_s * region.speed

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.now_s += self.random.choice((0.05, 0.3, 1.0, 3.0))
            often = (self.renew, self.renew, self.renew, self.fence, self.fence)
            self.random.choice((*often, self.link, self.rare, self.hear, self.lease_again))()
            self.check()

    def link(self) -> None:
        a, b = self.random.sample(range(len(self.regions)), 2)
        self.cut[a][b] = not self.cut[a][b]

    def rare(self) -> None:
        region = self.random.choice(self.regions)
        if self.random.random() < 0.4:
            region.began_s, region.promise, region.granted, region.fenced = self.clock(region), None, {}, set()
        elif not region.is_primary and not region.takes and region.leased:
            region.takes = next_generation(max(region.generation, region.refuses_below), region.slot)
            region.fenced = set()
            if self.random.random() < 0.3:
                self.ask_for_way(region)

    def ask_for_way(self, region: Region) -> None:
        """A switchover begins; it may become a failover, and whoever made way may take its place back."""
        region.asked_way = region.takes
        for other in self.regions:
            if other.is_primary and other.generation < region.takes and not self.cut[region.slot][other.slot]:
                other.is_primary = False

    def hear(self) -> None:
        """A region asks another one what it is, and knows of a lease, or of none, from then on."""
        asks, other = self.random.sample(self.regions, 2)
        ways = self.cut[asks.slot][other.slot] or self.cut[other.slot][asks.slot]
        if not ways and other.is_primary and other.generation >= asks.generation:
            asks.is_primary = False
            self.knows(asks, other.leased)

    def knows(self, region: Region, leased: bool) -> None:
        if leased and not region.leased and self.bug != "is_bound_by_old_promises_only":
            region.promise = Promise.unknown(self.clock(region), LEASE_S)
        region.leased = leased
        if not leased:
            region.takes = 0

    def lease_again(self) -> None:
        """The other one follows: the writer is bound, then the lease is declared, then the other one is told."""
        for region in self.regions:
            other = self.regions[1 - region.slot]
            follows = other.generation == region.generation and not other.is_primary
            if region.alone and region.is_primary and follows and not self.cut[other.slot][region.slot]:
                region.leased, region.granted = True, {}
                if self.bug != "tells_before_it_is_bound":
                    region.alone, region.begun_s = False, self.clock(region) + LEASE_S

    def renew(self) -> None:
        """A primary asks somebody, who answers, if both ways are open; that takes a while."""
        asks = self.random.choice(self.regions)
        other = self.random.choice(self.regions)
        if asks is other or not asks.is_primary or self.cut[asks.slot][other.slot]:
            return
        asked_s = self.clock(asks)
        self.now_s += self.random.choice((0.0, 0.1, 2.0))
        if other.generation > asks.generation:
            if not self.cut[other.slot][asks.slot]:  # the answer says so
                asks.is_primary = False
                if other.is_primary and self.bug != "steps_down_and_relies_on_a_lease":
                    self.knows(asks, other.leased)
            return
        refuses = 0 if self.bug == "forgets_refusals" else max(other.refuses_below, other.takes)
        if not may_grant(asks.generation, other.generation, refuses):
            return
        other.generation = asks.generation
        other.is_primary = False
        self.knows(other, asks.leased)
        if not asks.leased:
            return
        other.promise = self.promise(other).granted(self.clock(other), LEASE_S)
        self.now_s += self.random.choice((0.0, 0.1, 2.0))
        if not self.cut[other.slot][asks.slot]:
            asks.granted[other.slot] = self.clock(asks) if self.bug == "counts_from_the_answer" else asked_s

    def promise(self, region: Region) -> Promise:
        if region.promise is None and self.bug == "knows_nothing_after_a_restart":
            return Promise(0.0)
        return region.promise or Promise.unknown(region.began_s, LEASE_S)

    def fence(self) -> None:
        """Whoever wants a generation asks somebody, itself too, and begins when it is sure."""
        region = self.random.choice([r for r in self.regions if r.takes] or [None])  # type: ignore[list-item]
        if region is None:
            return
        if region.generation > region.takes:
            region.takes = 0
            return
        other = self.random.choice(self.regions)
        if not (self.cut[region.slot][other.slot] or self.cut[other.slot][region.slot]):
            if other is not region and not other.is_primary and not other.takes:  # else it minds its own
                other.refuses_below = max(other.refuses_below, region.takes)
            fenced_for = max(other.refuses_below, other.takes)
            bound = other.is_primary or not self.promise(other).is_over(self.clock(other))
            if not bound and fenced_for >= region.takes:
                region.fenced.add(other.slot)
        needed = blocking(len(self.regions)) - (self.bug == "asks_a_majority_less")
        if len(region.fenced) >= needed:
            region.alone = self.may_be_alone(region)
            region.leased = not region.alone
            region.generation, region.is_primary, region.takes = region.takes, True, 0
            region.granted, region.fenced, region.begun_s = {}, set(), float("-inf")
            self.promotions += 1
            self.alone += region.alone

    def may_be_alone(self, region: Region) -> bool:
        asked = region.asked_way > region.generation and self.bug != "is_alone_though_it_asked_for_way"
        return not asked and (len(self.regions) == 2 or self.bug == "is_alone_among_many")

    def may_acknowledge(self, region: Region) -> bool:
        until_s = max(held_until(region.granted.values(), len(self.regions), LEASE_S), region.begun_s)
        return region.is_primary and (region.alone or self.clock(region) < until_s)

    def check(self) -> None:
        """Who may acknowledge now: one region, whatever all of them believe."""
        may = [region.slot for region in self.regions if self.may_acknowledge(region)]
        assert len(may) <= 1, f"regions {may} acknowledge at {self.now_s:.1f} s"


def test_no_two_regions_acknowledge_at_a_time() -> None:
    promotions = alone = 0
    for seed in range(400):
        world = World(seed)
        world.run(300)
        promotions += world.promotions
        alone += world.alone
    assert promotions > 50
    assert alone > 20


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug: str) -> None:
    for seed in range(6000):
        try:
            World(seed, bug).run(300)
        except AssertionError:
            return
    pytest.fail(f"{bug} was not found")
