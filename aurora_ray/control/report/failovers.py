"""One trace per failover: from the last moment that a writer was known to be good to the first write after it.

    failover                          the outage as a client sees it
      failover.detect                 known to be good -> seen to be lost
      failover.decide                 seen -> the first action for it begins
      control.ChangeRole              one that was asked for: who was the writer, and who shall be, end at the same time
      control.StartInstance           only when the process went too: a fresh one, maybe in another AZ
      control.OpenInstance            below it, in the writer's process: seal, durable end, mount, engine, recovery
      control.PointEndpoints          sessions are led to the new writer
      failover.first_write            -> the first advance of the VDL in the new epoch

The parts follow each other without gaps worth mentioning, so they add up to the whole. The trace ends with the first
write or, when nobody writes, with the endpoint, and says so (`aurora.first_write`). If the control plane itself dies on
the way, the next one begins a trace of the same outage (see `outages`), with what it finds still to be done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from aurora_ray import telemetry
from aurora_ray.compute.commands import FirstWrite
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.promoting import MakeWriter, PromoteInstance
from aurora_ray.control.decide.reconcile import Action, ChangeRole, OpenInstance, StartInstance
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.control.model.state import ClusterPhase
from aurora_ray.control.observe.endpoints import PointEndpoints, StartEndpoints
from aurora_ray.control.observe.heartbeats import KillInstance
from aurora_ray.control.observe.outages import Outage, Outages

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.compute.config import Opened
    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.model.state import DBCluster, DBInstance
    from aurora_ray.control.observe.endpoints import Endpoints
    from aurora_ray.control.observe.processes import Processes

FIRST_WRITE_TIMEOUT_S: Final = 30.0
_DECISIONS: Final = (KillInstance, StartInstance, OpenInstance, ChangeRole, MakeWriter, PromoteInstance)

_FAILOVERS: Final = telemetry.counter("aurora_control_failovers", "Writers lost and opened anew.", ("cluster",))
_OUTAGE_S: Final = telemetry.histogram(
    "aurora_control_failover_seconds", "From the last sign of a writer to the first write after it."
)


@dataclass(slots=True)
class _Failover:
    span: Span
    context: Context
    cluster: str
    good_at_ns: int
    noticed_ns: int
    decided: bool = False
    opened: Opened | None = None
    flipped: bool = False
    taken_over: bool = False  # from a control plane that died; what it did is in no trace, or in another one


class Failovers:
    """Belongs to the control plane's event loop. It only watches: nothing depends on it."""

    def __init__(
        self,
        data_dir: Path,
        declared: Declared,
        processes: Processes,
        endpoints: Endpoints,
        *,
        say: Callable[[str], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._declared = declared
        self._processes = processes
        self._endpoints = endpoints
        self._say = say
        self._clock_ns = clock_ns
        self._active: dict[str, _Failover] = {}
        self._outages = Outages(data_dir)

    def take_over(self) -> None:
        """Goes on with what an earlier control plane had begun; for when the declared state is known."""
        for instance_id, outage in self._outages.load().items():
            self.lost(instance_id, outage.why, outage.good_at_ns, outage.noticed_ns)
            failover = self._active.get(instance_id)
            if failover is None:  # there is no such writer any more
                self._outages.strike(instance_id)
            else:
                failover.taken_over = True
                failover.span.add_event("a new control plane took over")

    def forget(self) -> None:
        """The fleet is stopped in order."""
        self._outages.forget()

    def lost(self, instance_id: str, why: str, good_at_ns: int, noticed_ns: int) -> None:
        """A writer that was available ended; both times are Unix times in ns, 0 if not known."""
        noticed_ns = noticed_ns or self._clock_ns()
        good_at_ns = min(good_at_ns or noticed_ns, noticed_ns)
        found = self._find(instance_id)
        if found is None or found[0].phase is ClusterPhase.DELETING or not found[1].role.traits.writes:
            return  # the cluster has its writer, or shall have none
        self._goes_on_with(found[0].name, instance_id, why)
        if instance_id in self._active:  # it was lost again before anyone wrote: the outage goes on
            failover = self._active[instance_id]
            failover.span.add_event("lost again", {"aurora.why": why})
            failover.decided, failover.opened, failover.flipped, failover.noticed_ns = False, None, False, noticed_ns
            return
        cluster, declared = found
        attributes: dict[str, str | int] = {
            "aurora.cluster": cluster.name,
            "aurora.instance": instance_id,
            "aurora.az.from": declared.az,
            "aurora.why": why,
        }
        status = self._processes.last_status(instance_id)
        if status is not None:
            attributes |= {"aurora.epoch.from": status.epoch, "aurora.vdl.seen": status.vdl}
        span = telemetry.start_span("failover", attributes, parent=Context(), start_ns=good_at_ns)
        context = trace.set_span_in_context(span, Context())
        telemetry.record_span("failover.detect", good_at_ns, noticed_ns, {"aurora.why": why}, parent=context)
        self._active[instance_id] = _Failover(span, context, cluster.name, good_at_ns, noticed_ns)
        self._outages.note(instance_id, Outage(why, good_at_ns, noticed_ns))

    def _goes_on_with(self, cluster: str, instance_id: str, why: str) -> None:
        """Another instance is to be the writer now: the outage that its cluster has is the same."""
        for earlier, failover in list(self._active.items()):
            if failover.cluster == cluster and earlier != instance_id:
                self._active[instance_id] = self._active.pop(earlier)
                self._outages.strike(earlier)
                self._outages.note(instance_id, Outage(why, failover.good_at_ns, failover.noticed_ns))

    @contextmanager
    def around(self, action: Action) -> Iterator[None]:
        """The trace that an action belongs to, if it belongs to one."""
        failover = self._of(action)
        if failover is None:
            yield
            return
        if not failover.decided and isinstance(action, _DECISIONS):
            failover.decided = True
            telemetry.record_span(
                "failover.decide",
                failover.noticed_ns,
                self._clock_ns(),
                {"aurora.decision": type(action).__name__, "aurora.why": action.why},
                parent=failover.context,
            )
        with telemetry.attached(failover.context):
            yield

    def done(self, action: Action) -> None:
        """An action was carried out."""
        if isinstance(action, MakeWriter):
            found = self._find(action.target)
            if found is not None and found[1].role.traits.writes:
                self._goes_on_with(action.cluster, action.target, action.why)
        elif isinstance(action, OpenInstance | PromoteInstance):
            failover, instance = (
                self._active.get(action.instance_id),
                self._processes.instances.get(action.instance_id),
            )
            there = isinstance(action, OpenInstance) or self._is_available(action.instance_id)
            if failover is not None and instance is not None and there:
                failover.opened = instance.opened
                if not self._endpoints.exist:
                    self._flipped(action.instance_id, failover)
        elif isinstance(action, PointEndpoints):
            for instance_id, failover in list(self._active.items()):
                cluster = next((c for c in self._declared.fleet.clusters if c.name == failover.cluster), None)
                there = failover.opened is not None or (failover.taken_over and self._is_available(instance_id))
                if there and cluster is not None and self._endpoints.serves(cluster):
                    self._flipped(instance_id, failover)

    def asked(self, instance_id: str) -> None:
        """Someone wants the writer to move, or another instance to be it (`instance_id`): the outage begins now."""
        now_ns = self._clock_ns()
        self.lost(instance_id, "a failover was asked for", now_ns, now_ns)

    def _flipped(self, instance_id: str, failover: _Failover) -> None:
        if not failover.flipped:
            failover.flipped = True
            # If all was done before we took over, it was written to before as well.
            missed = failover.taken_over and failover.opened is None
            flipped_ns = failover.noticed_ns if missed else self._clock_ns()
            work = self._await_write(instance_id, failover, flipped_ns)
            self._processes.tasks.start(work, f"first write of {instance_id}")

    async def _await_write(self, instance_id: str, failover: _Failover, flipped_ns: int) -> None:
        instance = self._processes.instances.get(instance_id)
        write: tuple[int, int] | None = None
        if instance is not None:
            with contextlib.suppress(ProcessGoneError, TimeoutError):
                write = await instance.process.do(FirstWrite(flipped_ns, FIRST_WRITE_TIMEOUT_S))
        if self._active.get(instance_id) is not failover or not failover.flipped:
            return  # lost again meanwhile
        del self._active[instance_id]
        self._outages.strike(instance_id)
        end_ns = write[0] if write is not None else flipped_ns
        if write is not None:
            attributes = {"aurora.vdl": write[1]}
            telemetry.record_span("failover.first_write", flipped_ns, end_ns, attributes, parent=failover.context)
        self._finish(instance_id, failover, end_ns, written=write is not None)

    def _finish(self, instance_id: str, failover: _Failover, end_ns: int, *, written: bool) -> None:
        found, opened = self._find(instance_id), failover.opened
        failover.span.set_attribute("aurora.first_write", written)
        if opened is not None:
            failover.span.set_attributes({"aurora.epoch": opened.epoch, "aurora.lsn.opened": opened.vdl})
        if found is not None:
            failover.span.set_attribute("aurora.az", found[1].az)
        failover.span.end(end_time=end_ns)
        outage_s = (end_ns - failover.good_at_ns) / 1e9
        _FAILOVERS.labels(failover.cluster).inc()
        _OUTAGE_S.observe(outage_s)
        self._say(f"{failover.cluster} was without a writer for {outage_s:.2f} s")

    def _of(self, action: Action) -> _Failover | None:
        if isinstance(action, ChangeRole):  # of the writer before, too: its end is a part of the outage
            cluster = self._declared.fleet.cluster_of(action.instance_id)
            return next((f for f in self._active.values() if cluster is not None and f.cluster == cluster.name), None)
        if isinstance(action, StartInstance | OpenInstance | KillInstance | MakeWriter | PromoteInstance):
            return self._active.get(action.instance_id)
        if isinstance(action, PointEndpoints | StartEndpoints):
            return next(iter(self._active.values()), None)
        return None

    def _is_available(self, instance_id: str) -> bool:
        instance = self._processes.instances.get(instance_id)
        return instance is not None and instance.seen.serves(Role.WRITER)

    def _find(self, instance_id: str) -> tuple[DBCluster, DBInstance] | None:
        for cluster in self._declared.fleet.clusters:
            for declared in cluster.instances:
                if declared.instance_id == instance_id:
                    return cluster, declared
        return None
