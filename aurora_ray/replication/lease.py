"""Until when a primary region may acknowledge commits: a lease of a majority of regions, and a bound on the RPO. Pure.

**The lease.** Whoever may not be the primary any more must have stopped before another one begins, though nobody can
reach it. A region *grants* the primary of the newest generation that it knows the time `lease_s`, by its own clock from
when it is asked; until that is over it is part of no promotion (`Promise`). The primary counts from when it asked, and
acknowledges commits while a majority of all regions, itself among them, has granted that (`held_until`).

A region that shall take a generation by a failover, and every region that hears of that, notes that it grants nothing
to earlier generations any more (`refuses_below`, durable), and says so once what it granted is over. When so many have
that no majority is left without them (`blocking`), the old primary acknowledges nothing, and never will again in its
generation: the new one can begin. What a control plane granted before it ended is not known to its successor, which
therefore holds itself for bound as if it had granted when it began.

**The price.** A primary that cannot reach a majority of regions for `lease_s` acknowledges nothing until it can: of two
regions, either's loss, or that of the link, stops writes. A control plane that is away for as long does the same.
Clocks are compared with nobody's; their speeds may differ by `DRIFT`.

**The bound.** A secondary that says its lag had, when it was asked, at least all from before `lag` ago. So commits may
be acknowledged until the best of them would lag by more (`bounded_until`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

DRIFT: Final = 0.05
LEASE_MIN_S: Final = 2.0  # what may be lost of it to a pause of a control plane, or of a link, is little even so
ASKED_EVERY_S: Final = 1.0  # regions ask each other, at the least ...
ASKED_IN_A_LEASE: Final = 5  # ... and so many times while a lease lasts, or a silence after which one takes over
LEASE_MAX_S: Final = 300.0
RPO_MIN_S: Final = 20.0  # as Aurora has it
RPO_MAX_S: Final = 2147483647.0
GIVE_UP_S: Final = 5.0  # a failover that cannot be sure waits for the lease and so much longer


def majority(regions: int) -> int:
    """Of that many."""
    return regions // 2 + 1


def blocking(regions: int) -> int:
    """So many regions are part of every majority, whichever they are."""
    return regions - majority(regions) + 1


@dataclass(frozen=True, slots=True)
class Promise:
    """What a region has granted, by its own clock: it is bound until `until_s`."""

    until_s: float

    @classmethod
    def unknown(cls, began_s: float, lease_s: float) -> Promise:
        """Of one whose control plane began then, and knows nothing of what an earlier one granted."""
        return cls(bound_until(began_s, lease_s))

    def granted(self, now_s: float, lease_s: float) -> Promise:
        """Once more, now."""
        return Promise(max(self.until_s, bound_until(now_s, lease_s)))

    def is_over(self, now_s: float) -> bool:
        """Whether it binds nobody any more."""
        return now_s >= self.until_s


def bound_until(now_s: float, lease_s: float) -> float:
    """Longer than any clock of the primary's counts."""
    return now_s + lease_s * (1 + DRIFT)


def may_grant(asks: int, known: int, refuses_below: int) -> bool:
    """Whether the primary of generation `asks` is granted a lease by a region that knows of generation `known`."""
    return asks >= known and asks >= refuses_below


def asked_every_s(lease_s: float, failover_after_s: float) -> float:
    """How often regions ask each other, where these hold (seconds; 0: there is none)."""
    shortest = min(filter(None, (lease_s, failover_after_s)), default=float("inf"))
    return min(ASKED_EVERY_S, shortest / ASKED_IN_A_LEASE)


def held_until(asked_s: Iterable[float], regions: int, lease_s: float) -> float:
    """By the primary's clock: `asked_s` says when it asked, last, each of those that granted it what it asked for,
    itself not among them. Minus infinity if they are too few; infinity where it needs nobody."""
    needed = majority(regions) - 1
    if needed == 0:
        return float("inf")
    newest = sorted(asked_s, reverse=True)
    return newest[needed - 1] + lease_s if len(newest) >= needed else float("-inf")


def bounded_until(lags: Iterable[tuple[float, float]], rpo_s: float) -> float:
    """By the primary's clock: `lags` are pairs of when a secondary was asked, and the lag in seconds that it told."""
    return max((asked_s - lag_s for asked_s, lag_s in lags), default=float("-inf")) + rpo_s
