"""Replica auto scaling: how many readers there shall be now. Pure: loads and a clock in, a number out.

Target tracking as AWS does it. The load of a cluster is the average of its readers' over the last while: OUT_WINDOW_S
to add readers, the longer IN_WINDOW_S to remove one, so neither a peak nor a lull that passes changes anything. As the
load of all together is taken to stay the same when it is spread over another number, `n` readers with an average of `a`
become `ceil(n * a / target)`; fewer only if those that stay would be at ROOM of the target, and one at a time. Between
changes, whoever made them, lie the rule's cool-downs. Nothing is decided before a window is full, nor while a reader
that is declared does not serve: a control plane that has just begun, or a reader that starts, is no reason to do
anything.

A cluster without readers has the reader endpoint lead to its writer, so then the writer's load counts. The last reader
goes, where the rule allows none, if its load and the writer's together would be at ROOM of the target.

Only readers that were added so are removed so: that is, of those, the one with the highest promotion tier and then the
newest. It is drained first: it gets no new sessions, and goes when it has none, or after DRAIN_S.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final

from aurora_ray.compute.role import Role
from aurora_ray.control.decide import reconcile
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.scaling import ReaderScaling, ScalingMetric
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet

if TYPE_CHECKING:
    from aurora_ray.control.model.observed import InstanceSeen

OUT_WINDOW_S: Final = 60.0
IN_WINDOW_S: Final = 300.0
ROOM: Final = 0.9
DRAIN_S: Final = 300.0
SAMPLE_EVERY_S: Final = 1.0
_SAMPLES_MAX: Final = int(2 * IN_WINDOW_S / SAMPLE_EVERY_S)


@dataclass(frozen=True, slots=True)
class ScaleReaders(reconcile.Action):
    """Declare another number of readers, by the cluster's rule."""

    kind: ClassVar = Kind.SCALE
    of: ClassVar = ("cluster",)
    cluster: str
    count: int


@dataclass(frozen=True, slots=True)
class RemoveDrained(reconcile.Action):
    """Forget a reader that was drained."""

    kind: ClassVar = Kind.DRAIN
    of: ClassVar = ("instance_id",)
    instance_id: str


class Tracking:
    """Of one cluster. `look` is called again and again, with the same clock."""

    def __init__(self) -> None:
        # When, the average, and what one fewer would have to do.
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=_SAMPLES_MAX)
        self._count: int | None = None
        self._changed_s = -math.inf

    def look(
        self, rule: ReaderScaling, count: int, loads: Mapping[str, float], now_s: float, *, writer: float | None = None
    ) -> int:
        """How many readers there shall be. `count`: that are declared and stay; `loads`: of those that serve, `writer`:
        the writer's, None if it does not serve."""
        if count != self._count:
            if self._count is not None:
                self._changed_s = now_s
            self._count = count
            self._samples.clear()  # the load is spread anew
        if not rule.min_readers <= count <= rule.max_readers:
            return min(max(count, rule.min_readers), rule.max_readers)
        if len(loads) < count or (count <= 1 and rule.min_readers == 0 and writer is None):
            self._samples.clear()
            return count
        if self._samples and now_s - self._samples[-1][0] < SAMPLE_EVERY_S:
            return count
        total = sum(loads.values())
        average = total / count if count else writer or 0.0
        self._samples.append((now_s, average, total / (count - 1) if count > 1 else total + (writer or 0.0)))
        rested_s = now_s - self._changed_s
        recent = self._average(OUT_WINDOW_S, now_s)
        if recent is not None and recent[0] > rule.target and rested_s >= rule.cooldown_out_s:
            return min(rule.max_readers, max(count + 1, math.ceil(count * recent[0] / rule.target)))
        lasting = self._average(IN_WINDOW_S, now_s)
        if lasting is not None and count > rule.min_readers and rested_s >= rule.cooldown_in_s:
            return count - 1 if lasting[1] <= ROOM * rule.target else count
        return count

    def _average(self, window_s: float, now_s: float) -> tuple[float, float] | None:
        """Of the load, and of what one fewer would have, over the window; None if it is not full yet."""
        if not self._samples or self._samples[0][0] > now_s - window_s:
            return None
        seen = [each for each in self._samples if each[0] >= now_s - window_s]
        return sum(each[1] for each in seen) / len(seen), sum(each[2] for each in seen) / len(seen)


class Scaling:
    """All clusters with a rule."""

    def __init__(self) -> None:
        self._tracking: dict[str, Tracking] = {}

    def wanted(
        self, fleet: Fleet, seen: Mapping[str, InstanceSeen], now_s: float, wall_s: float
    ) -> Iterator[reconcile.Action]:
        """Actions, as in `reconcile`. `wall_s`: Unix time."""
        clusters = [c for c in fleet.clusters if c.phase is ClusterPhase.AVAILABLE]
        for name in self._tracking.keys() - {c.name for c in clusters if c.scaling is not None}:
            del self._tracking[name]
        for cluster in clusters:
            yield from _drained(cluster, seen, wall_s)
            if (rule := cluster.scaling) is None:
                continue
            staying = [reader for reader in cluster.readers() if not reader.leaving_since_s]
            loads = dict(_loads(rule, staying, seen))
            tracking = self._tracking.setdefault(cluster.name, Tracking())
            writer = _load(rule, cluster.writer(), seen)
            count = tracking.look(rule, len(staying), loads, now_s, writer=writer)
            if count > len(staying) or (count < len(staying) and next_to_leave(cluster) is not None):
                average = f", {sum(loads.values()) / len(loads):.0f} of {rule.target:g} {rule.metric}" if loads else ""
                yield ScaleReaders(f"{cluster.name} has {len(staying)} readers{average}", cluster.name, count)


def _loads(
    rule: ReaderScaling, readers: list[DBInstance], seen: Mapping[str, InstanceSeen]
) -> Iterator[tuple[str, float]]:
    for reader in readers:
        if (load := _load(rule, reader, seen)) is not None:
            yield reader.instance_id, load


def _load(rule: ReaderScaling, instance: DBInstance, seen: Mapping[str, InstanceSeen]) -> float | None:
    """None if it does not serve as what it is declared to be, or its load is not known."""
    now = seen.get(instance.instance_id)
    if now is None or not now.serves(instance.role):
        return None
    load = now.cpu_percent if rule.metric is ScalingMetric.CPU else now.connections
    return None if load is None else float(load)


def _drained(cluster: DBCluster, seen: Mapping[str, InstanceSeen], wall_s: float) -> Iterator[reconcile.Action]:
    for reader in cluster.readers():
        if not reader.leaving_since_s:
            continue
        now = seen.get(reader.instance_id)
        if now is None or not now.serves(Role.READER) or now.connections == 0:
            yield RemoveDrained(f"{reader.instance_id} is drained", reader.instance_id)
        elif wall_s - reader.leaving_since_s >= DRAIN_S:
            yield RemoveDrained(f"{reader.instance_id} was given {DRAIN_S:g} s to be drained", reader.instance_id)


def next_to_leave(cluster: DBCluster) -> DBInstance | None:
    """The reader that scaling removes next, of those that it added."""
    own = [reader for reader in cluster.readers() if reader.scaled and not reader.leaving_since_s]
    return max(own, key=lambda r: (r.promotion_tier, int(r.instance_id.rpartition("-")[2])), default=None)


def with_kept(fleet: Fleet, name: str, count: int) -> Fleet:
    """Keeps readers that were to leave, the newest first, until `count` stay or none leaves any more."""
    cluster = fleet.cluster(name)
    leaving = [reader for reader in cluster.readers() if reader.leaving_since_s]
    missing = count - (len(cluster.readers()) - len(leaving))
    for reader in sorted(leaving, key=lambda r: -r.leaving_since_s)[: max(0, missing)]:
        fleet = fleet.with_instance(name, replace(reader, leaving_since_s=0.0))
    return fleet


def with_fewer(fleet: Fleet, name: str, count: int, wall_s: float) -> Fleet:
    """Has readers leave until `count` stay, of those that may."""
    while True:
        cluster = fleet.cluster(name)
        leaves = next_to_leave(cluster)
        staying = sum(not reader.leaving_since_s for reader in cluster.readers())
        if leaves is None or staying <= count:
            return fleet
        fleet = fleet.with_instance(name, replace(leaves, leaving_since_s=wall_s))
