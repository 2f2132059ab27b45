"""What the instances of a cluster are told of each other: who there is and how far behind, and how far back the
readers' sessions still look.

An engine's users find the first in `aurora_replica_status()`: a row for each instance that serves, the writer's marked.
All instances are told all rows together, so none has a row of an instance that is gone, or two writers. The second goes
to the writer alone, which keeps old rows for them for LEASE_S: what a reader does not tell anew is forgotten, so one
that is dead, or does not answer, holds nothing for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.compute.commands import HoldHorizon, ReplicaStatus
from aurora_ray.control.model import addresses
from aurora_ray.control.model.state import ClusterPhase
from aurora_ray.engine.base import RegionRow, ReplicaRow
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import InstanceStatus
    from aurora_ray.control.model.state import DBCluster, DBInstance, Fleet
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.engine.base import Horizon

MASTER: Final = "MASTER_SESSION_ID"
LEASE_S: Final = 5.0
ALONE_EVERY_S: Final = 30.0  # a writer without readers; those who read the rows think them stale after 300 s
TELL_TIMEOUT_S: Final = 5.0
NO_REGIONS: Final[Mapping[str, Sequence[RegionRow]]] = MappingProxyType({})
NO_WRITERS: Final[Mapping[str, tuple[str, int]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Known:
    """A status, and when it came: by the clock that decides, and Unix time."""

    status: InstanceStatus
    at_s: float
    unix_s: float


class Replicas:
    """Belongs to the control plane's event loop. `wall` gives Unix time in seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._known: dict[str, _Known] = {}
        self._told_s: dict[str, float] = {}  # clusters without readers

    def orders(
        self,
        fleet: Fleet,
        instances: Mapping[str, Instance],
        now_s: float,
        regions: Mapping[str, Sequence[RegionRow]] = NO_REGIONS,
        writers: Mapping[str, tuple[str, int]] = NO_WRITERS,
    ) -> Iterator[tuple[str, tuple[Command[Any], ...]]]:
        """Who is to be told what now; to be asked about once a second, with the same clock. `regions`: of global
        clusters, by the name of the cluster here; `writers`: of those whose readers forward writes, where to."""
        self._look(instances, now_s)
        for cluster in fleet.clusters:
            if cluster.phase is ClusterPhase.DELETING or not self._is_due(cluster, now_s):
                continue
            serving = [i for i in cluster.instances if self._serves(i, instances)]
            region = fleet.region if cluster.membership is not None else ""
            told = [self._row(instance, now_s, region) for instance in serving]
            rows = ReplicaStatus(told, regions.get(cluster.name, ()), writers.get(cluster.name))
            horizon = HoldHorizon([h for i in serving if (h := self._horizon(i, now_s)) is not None], LEASE_S)
            for instance in serving:
                holds = (horizon,) if instance.role.traits.writes and cluster.readers() else ()
                yield instance.instance_id, (*holds, rows)

    def serving(
        self, cluster: DBCluster, instances: Mapping[str, Instance], now_s: float, region: str
    ) -> tuple[tuple[ReplicaRow, int], ...]:
        """The same rows for other regions than this one, with the LSN that each instance shows."""
        serving = [i for i in cluster.instances if self._serves(i, instances)]
        return tuple((self._row(i, now_s, region), self._known[i.instance_id].status.vdl) for i in serving)

    def _look(self, instances: Mapping[str, Instance], now_s: float) -> None:
        for instance_id in self._known.keys() - instances.keys():
            del self._known[instance_id]
        for instance_id, instance in instances.items():
            known = self._known.get(instance_id)
            if instance.status is not None and (known is None or known.status is not instance.status):
                self._known[instance_id] = _Known(instance.status, now_s, self._wall())

    def _is_due(self, cluster: DBCluster, now_s: float) -> bool:
        if cluster.readers() or (cluster.membership is not None and cluster.membership.peers):
            return True
        due = now_s - self._told_s.get(cluster.name, -ALONE_EVERY_S) >= ALONE_EVERY_S
        if due:
            self._told_s[cluster.name] = now_s
        return due

    def _serves(self, declared: DBInstance, instances: Mapping[str, Instance]) -> bool:
        instance = instances.get(declared.instance_id)
        known = declared.instance_id in self._known
        engine = declared.role.traits.engine
        return engine and known and instance is not None and instance.seen.serves(declared.role)

    def _row(self, declared: DBInstance, now_s: float, region: str) -> ReplicaRow:
        known = self._known[declared.instance_id]
        status = known.status
        session = MASTER if declared.role.traits.writes else f"{declared.instance_id}/{status.pid}"
        silent_ms = max(0.0, now_s - known.at_s - LEASE_S) * 1000  # it falls behind for as long as nothing is heard
        lag_ms = 0.0 if declared.role.traits.writes else (status.lag_ms or 0.0) + silent_ms
        cpu = float(status.stats.get("cpu_percent", 0.0))
        return ReplicaRow(
            server_id(declared.instance_id, region),
            session,
            cpu,
            lag_ms,
            known.unix_s,
            addresses.host_id(declared.port),
            declared.instance_id,
        )

    def _horizon(self, declared: DBInstance, now_s: float) -> Horizon | None:
        known = self._known[declared.instance_id]
        fresh = now_s - known.at_s < LEASE_S
        return known.status.horizon if fresh and declared.role.traits.reads else None


def server_id(instance_id: str, region: str) -> str:
    """What users know an instance by: regions of a global cluster give the same names (`region` empty: of none)."""
    return f"{instance_id}-{region}" if region else instance_id


async def tell(instance: Instance, commands: tuple[Command[Any], ...]) -> None:
    """Tells an instance; what does not arrive is told anew the next time."""
    for command in commands:
        with contextlib.suppress(AuroraError, TimeoutError):
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await instance.process.do(command)
