"""What is known of each process that runs. Everyone reads it; it changes by these verbs alone.

A verb says what happened (it was told, it answered, it ended), and how that changes what is known stands here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from aurora_ray.compute.config import IncarnationPhase
from aurora_ray.control.model.observed import Addresses, CapacityUse, InstancePhase, InstanceSeen, NodeSeen
from aurora_ray.control.observe.nodes import lost_segments_of, segments_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aurora_ray.compute.config import InstanceStatus, Opened
    from aurora_ray.compute.role import Role
    from aurora_ray.control.model.runtime import NodeProcess
    from aurora_ray.control.observe.reach import Reachable
    from aurora_ray.storage.v1 import storage_pb2 as pb
    from aurora_ray.volume.spec import GroupPlacement


FULL: Final = 0.85  # of its budget: a cache that had to give something up keeps 0.9 (mount/evictor.py)


class Node:
    """A storage node that runs. `state` is what it told last."""

    __slots__ = ("_seen", "_state", "process")

    def __init__(self, process: NodeProcess, seen: NodeSeen) -> None:
        self.process = process
        self._seen = seen
        self._state: pb.StateReply | None = None

    @property
    def seen(self) -> NodeSeen:
        """For decisions."""
        return self._seen

    @property
    def state(self) -> pb.StateReply | None:
        """What it told last; None before it was asked."""
        return self._state

    def fell_silent(self) -> bool:
        """It did not answer; whether that is new."""
        return self._becomes(replace(self._seen, silent=True))

    def answered(self, reply: pb.StateReply, asked: NodeSeen) -> bool:
        """It told its state, when asked while it was known as `asked`; whether anything is new."""
        self._state = reply
        held, refilling = segments_of(reply), lost_segments_of(reply)
        retention = frozenset((UUID(bytes=v.volume), v.retention.seconds, v.retention.log_bytes) for v in reply.volumes)
        if self._seen.segments != asked.segments:  # something was done meanwhile: the answer may be older
            held, refilling = self._seen.segments, self._seen.refilling
        return self._becomes(replace(self._seen, silent=False, segments=held, refilling=refilling, retention=retention))

    def heard_addresses(self, addresses: Addresses) -> None:
        """It was told where the others are."""
        self._becomes(replace(self._seen, told=addresses))

    def made_segments(self, made: Iterable[tuple[UUID, int]]) -> None:
        """It has made these (volume, group)."""
        self._becomes(replace(self._seen, segments=self._seen.segments.union(made)))

    def dropped(self, volume_ids: Iterable[UUID]) -> None:
        """It has put these volumes aside."""
        gone = set(volume_ids)
        self._becomes(replace(self._seen, segments=frozenset(s for s in self._seen.segments if s[0] not in gone)))

    def _becomes(self, seen: NodeSeen) -> bool:
        changed, self._seen = seen != self._seen, seen
        return changed


class Instance:
    """An instance whose process runs. `status` and `opened` are those of its present or last incarnation."""

    __slots__ = ("__weakref__", "_available_since_s", "_opened", "_seen", "_status", "_unseen_end", "process")

    def __init__(self, process: Reachable) -> None:
        self.process = process
        self._seen = InstanceSeen(InstancePhase.IDLE)
        self._status: InstanceStatus | None = None
        self._opened: Opened | None = None
        self._available_since_s = 0.0
        self._unseen_end = False

    @property
    def seen(self) -> InstanceSeen:
        """For decisions."""
        return self._seen

    @property
    def status(self) -> InstanceStatus | None:
        """What it told last; None before it was available."""
        return self._status

    @property
    def opened(self) -> Opened | None:
        """What its last opening said."""
        return self._opened

    @property
    def available_since_s(self) -> float:
        """By the control plane's clock."""
        return self._available_since_s

    def opening(self, told: Addresses, role: Role, source: Addresses = ()) -> None:
        """It was asked to open in that role, with these storage nodes; a replicator, with those of the primary too."""
        self._seen = InstanceSeen(InstancePhase.OPENING, told=told, role=role, source_told=source)

    def has_opened(self, opened: Opened) -> None:
        """The opening was answered."""
        self._opened = opened

    def is_at(self, phase: InstancePhase, reason: str | None = None, role: Role | None = None) -> None:
        """Where it stands, as it said itself."""
        before = self._seen
        reason, role = before.reason if reason is None else reason, role or before.role
        self._seen = replace(before, phase=phase, reason=reason, role=role)

    def became_available(self, status: InstanceStatus, since_s: float) -> None:
        """Its engine accepts statements; its end will be news."""
        self._unseen_end = True
        self._available_since_s = since_s
        self._seen = replace(
            self._seen,
            phase=InstancePhase.AVAILABLE,
            reason="",
            repaired=frozenset(status.repaired),
            memory_bytes=status.declared_memory_bytes,
            volume_id=status.volume_id,
            role=status.role,
            described=status.described,
        )
        self.told(status)

    def told(self, status: InstanceStatus) -> bool:
        """It told its status while it was available; whether anything that is decided by is new."""
        before, self._status = self._seen, status
        copy = status.copy
        now = replace(
            before,
            groups=frozenset(status.groups),
            free_bytes=status.free_bytes,
            placements=status.placements,
            copied=copy is not None and copy.following,
        )
        # What is never the same, and nothing has to be done about at once, is no news.
        connections, cpu = status.stats.get("connections"), status.stats.get("cpu_percent")
        self._seen = replace(
            now,
            lag_ms=status.lag_ms,
            copy_lsn=copy.lsn if copy is not None else 0,
            cpu_percent=None if cpu is None else float(cpu),
            connections=None if connections is None else int(connections),
            capacity=_capacity_of(status.stats),
        )
        used, looked_at_s = self._seen.capacity, before.capacity.at_s if before.capacity is not None else 0.0
        return before != now or (used is not None and used.is_pressed and used.at_s != looked_at_s)

    def told_of_room(self, status: InstanceStatus) -> bool:
        """It told its status while it opens: of that, what its volume has room for counts already, as its engine may
        need more to come up; whether that is new. An incarnation before this one says nothing of it."""
        before = self._seen
        if status.phase in (IncarnationPhase.ENDED, IncarnationPhase.AVAILABLE) or status.free_bytes is None:
            return False
        self._seen = replace(
            before, groups=frozenset(status.groups), free_bytes=status.free_bytes, volume_id=status.volume_id
        )
        return before != self._seen

    def has_capacity(self, acu: float) -> None:
        """It was given that; what it does with it is known at the next look."""
        before = self._seen.capacity
        if before is not None:
            self._seen = replace(self._seen, capacity=replace(before, acu=acu) if acu else None)

    def heard_addresses(self, addresses: Addresses) -> None:
        """It was told where the storage nodes are."""
        self._seen = replace(self._seen, told=addresses)

    def heard_source(self, addresses: Addresses) -> None:
        """It was told where the storage nodes of the primary region are."""
        self._seen = replace(self._seen, source_told=addresses)

    def got_group(self, group: int) -> None:
        """It has another group. How much is free is only known again at the next look; until then it must not cause
        another growth."""
        self._seen = replace(self._seen, groups=self._seen.groups | {group}, free_bytes=None)

    def changed_members(self, placements: tuple[GroupPlacement, ...]) -> None:
        """It goes by these from now on."""
        self._seen = replace(self._seen, placements=placements)

    def stopping(self, reason: str = "") -> None:
        """It is going to end: nothing is led to it and nothing asked of it."""
        self._seen = replace(self._seen, phase=InstancePhase.STOPPING, reason=reason or self._seen.reason)

    def ended(self, reason: str) -> None:
        """Its incarnation has ended."""
        self._seen = InstanceSeen(InstancePhase.ENDED, reason)
        self._unseen_end = False

    def end_is_seen(self) -> bool:
        """Its end is known, or going to be by whoever causes it; whether an available incarnation's end was unknown."""
        unseen, self._unseen_end = self._unseen_end, False
        return unseen


def _capacity_of(stats: Mapping[str, int | float]) -> CapacityUse | None:
    if "acu" not in stats:
        return None

    def number(name: str) -> float:
        return float(stats.get(name, 0))

    budget = number("cache_budget_bytes")
    return CapacityUse(
        at_s=number("looked_at_s"),
        acu=number("acu"),
        room=number("acu_room"),
        cpus_per_acu=number("cpus_per_acu"),
        cpus=number("cpus"),
        held_back=min(1.0, number("held_back_rate")),
        misses=number("misses_rate"),
        cache_full=budget > 0 and number("cached_bytes") >= FULL * budget,
        busy=int(number("busy")),
        slots=int(number("replication_slots")),
        cpu_enforced=bool(number("cpu_enforced")),
        memory_limit_bytes=int(number("memory_limit_bytes")),
    )
