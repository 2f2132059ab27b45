"""Leases and bounds of global clusters, as this control plane has them in memory: what it granted and was granted.

The rules are in replication/lease.py. What must outlive a control plane is declared (`Membership.refuses_below`); one
that begins holds itself for bound, and has nothing. An instance is told moments of its own clock: what that said when
it was last asked, and when its answer was here, which is later, lead from one to the other.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from aurora_ray.compute.commands import AcknowledgeUntil
from aurora_ray.control.model.views import NOTHING
from aurora_ray.errors import AuroraError
from aurora_ray.replication.lease import Promise, bounded_until, held_until, may_grant
from aurora_ray.replication.turnover import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aurora_ray.compute.config import Opened
    from aurora_ray.control.model.regional import Membership
    from aurora_ray.control.model.state import DBCluster
    from aurora_ray.control.model.views import View
    from aurora_ray.control.observe.known import Instance

TELL_EVERY_S: Final = 0.5
FOREVER: Final = float("inf")


def takes(cluster: DBCluster, known: Membership) -> int:
    """The generation that this region wants to take by a failover; 0 if it wants none."""
    turn = known.turnover
    return (
        turn.generation if turn is not None and turn.way is Way.FAILOVER and cluster.generation < turn.generation else 0
    )


class Leases:
    """Belongs to the control plane's event loop. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._promises: dict[str, Promise] = {}
        self._granted: dict[tuple[str, str], tuple[int, float]] = {}  # by region: for which generation, when asked
        self._lags: dict[tuple[str, str], tuple[float, float]] = {}  # by region: when asked, and the lag (seconds)
        self._turns: dict[str, tuple[int, float]] = {}
        # By instance: what its clock said, and when that was at the latest.
        self._clocks: dict[str, tuple[Instance, float, float]] = {}
        self._told_s: dict[str, float] = {}
        self._free: dict[str, tuple[int, Opened | None]] = {}  # instances that were told that there is no limit

    # ---- granting

    def grant(self, cluster: DBCluster, known: Membership, view: View) -> int:
        """Another region tells what it is, and is answered: the generation that it gets a lease for, or NOTHING."""
        asks = view.is_primary and view.lease_s > 0 and not view.yielded_to and cluster.is_secondary
        if not asks or not may_grant(view.generation, cluster.generation, known.refuses_below):
            return NOTHING
        self._promises[known.name] = self._promise(known).granted(self._clock(), max(known.lease_s, view.lease_s))
        return view.generation

    def fenced_for(self, known: Membership) -> int:
        """No earlier generation than that has a lease of this region, or gets one."""
        return known.refuses_below if self._promise(known).is_over(self._clock()) else 0

    def _promise(self, known: Membership) -> Promise:
        """Of one who has not been asked since there is a lease, or since this control plane began, it is not known."""
        if not known.lease_s:
            self._promises.pop(known.name, None)
            return Promise(float("-inf"))
        return self._promises.setdefault(known.name, Promise.unknown(self._clock(), known.lease_s))

    def fence(self, cluster: DBCluster, known: Membership, views: Mapping[str, View]) -> tuple[int, float]:
        """How many regions are fenced for the failover to here, and for how long it has been wanted."""
        wanted = takes(cluster, known)
        if not wanted:
            self._turns.pop(known.name, None)
            return 0, 0.0
        if self._turns.get(known.name, (0, 0.0))[0] != wanted:
            self._turns[known.name] = wanted, self._clock()
        fenced = [self.fenced_for(known), *(view.fenced_for for view in views.values())]
        return sum(each >= wanted for each in fenced), self._clock() - self._turns[known.name][1]

    # ---- having

    def answered(self, view: View, asked_s: float) -> None:
        """What another region said, when it was asked at `asked_s`."""
        where = view.name, view.region
        if view.grants != NOTHING:
            self._granted[where] = view.grants, asked_s
        if view.following:
            self._lags[where] = asked_s, view.lag_ms / 1e3 + view.as_of_s

    def until(self, cluster: DBCluster, known: Membership) -> float | None:
        """By this clock: until when the primary's commits may be acknowledged, None: for ever."""
        if not known.holds_commits:
            return None
        peers, limits = {peer.region for peer in known.peers}, []
        if known.lease_s:
            mine = cluster.generation
            asked = [
                asked_s
                for (name, region), (generation, asked_s) in self._granted.items()
                if name == known.name and region in peers and generation == mine
            ]
            limits.append(held_until(asked, len(peers) + 1, known.lease_s))
        if known.rpo_s:
            lags = [lag for (name, region), lag in self._lags.items() if name == known.name and region in peers]
            limits.append(bounded_until(lags, known.rpo_s))
        return min(limits)

    def forget(self, name: str, region: str) -> None:
        """A region that belongs to the global cluster no more."""
        self._granted.pop((name, region), None)
        self._lags.pop((name, region), None)

    # ---- telling

    def is_due(self, cluster: DBCluster) -> bool:
        """Whether the writer is to be told now."""
        due = self._clock() - self._told_s.get(cluster.name, -TELL_EVERY_S) >= TELL_EVERY_S
        if due:
            self._told_s[cluster.name] = self._clock()
        return due

    async def begin(self, cluster: DBCluster, writer: Instance, within_s: float) -> None:
        """The first limit, for a writer that had none. Raises what the instance raises, TimeoutError."""
        self._free.pop(cluster.writer().instance_id, None)
        said_s = await writer.process.do(AcknowledgeUntil(FOREVER, lowers=True))
        if said_s is not None:
            await writer.process.do(AcknowledgeUntil(said_s + within_s, lowers=True))

    async def tell(self, cluster: DBCluster, known: Membership, instance: Instance) -> None:
        """Has a writer acknowledge commits for as long as it may; what does not arrive is told anew the next time."""
        name, until_s = cluster.writer().instance_id, self.until(cluster, known)
        with contextlib.suppress(AuroraError, TimeoutError):
            if until_s is None:
                if self._free.get(name) != (id(instance), instance.opened):
                    await instance.process.do(AcknowledgeUntil(None))
                    self._free[name] = id(instance), instance.opened
                return
            self._free.pop(name, None)
            knew = self._clocks.get(name, (None,))[0] is instance
            for _ in range(1 if knew else 2):  # one that has just opened acknowledges nothing until it is told
                said_s = await instance.process.do(self._order(name, known, instance, until_s))
                if said_s is not None:
                    self._clocks[name] = instance, said_s, self._clock()

    def _order(self, name: str, known: Membership, instance: Instance, until_s: float) -> AcknowledgeUntil:
        there = self._clocks.get(name)
        if there is None or there[0] is not instance:
            return AcknowledgeUntil(FOREVER, lowers=True)  # what its clock says
        if until_s == -FOREVER:  # too few have answered this control plane: what an earlier one told stands
            return AcknowledgeUntil(there[1] + min(known.lease_s or FOREVER, known.rpo_s or FOREVER), lowers=True)
        return AcknowledgeUntil(there[1] + (until_s - there[2]))
