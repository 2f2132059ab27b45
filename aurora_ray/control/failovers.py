"""One trace per failover: from the last moment that a writer was known to be good to the first write after it.

    failover                          the outage as a client sees it
      failover.detect                 known to be good -> seen to be lost
      failover.decide                 seen -> the first action for it begins
      control.StartInstance           only when the process went too: a fresh one, maybe in another AZ
      control.OpenInstance            below it, in the writer's process: seal, durable end, mount, engine, recovery
      control.PointEndpoints          sessions are led to the new writer
      failover.first_write            -> the first advance of the VDL in the new epoch

The parts follow each other without gaps worth mentioning, so they add up to the whole. The trace ends with the first
write or, when nobody writes, with the endpoint, and says so (`aurora.first_write`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from aurora_ray import telemetry
from aurora_ray.control.endpoints import PointEndpoints, StartEndpoints
from aurora_ray.control.heartbeats import KillInstance
from aurora_ray.control.model import ClusterPhase
from aurora_ray.control.reconcile import Action, InstancePhase, OpenInstance, StartInstance
from aurora_ray.control.runtime import ProcessGoneError
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from aurora_ray.compute.config import Opened
    from aurora_ray.control.model import DBCluster, DBInstance
    from aurora_ray.control.plane import ControlPlane

FIRST_WRITE_TIMEOUT_S: Final = 30.0

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


class Failovers:
    """Belongs to the control plane's event loop. It only watches: nothing depends on it."""

    def __init__(self, plane: ControlPlane, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._plane = plane
        self._clock_ns = clock_ns
        self._active: dict[str, _Failover] = {}

    def lost(self, instance_id: str, why: str, good_at_ns: int, noticed_ns: int) -> None:
        """A writer that was available ended; both times are Unix times in ns, 0 if not known."""
        noticed_ns = noticed_ns or self._clock_ns()
        good_at_ns = min(good_at_ns or noticed_ns, noticed_ns)
        found = self._declared(instance_id)
        if found is None or found[0].phase is ClusterPhase.DELETING:
            return
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
        status = self._plane.processes.last_status(instance_id)
        if status is not None:
            attributes |= {"aurora.epoch.from": status.epoch, "aurora.vdl.seen": status.vdl}
        span = telemetry.start_span("failover", attributes, parent=Context(), start_ns=good_at_ns)
        context = trace.set_span_in_context(span, Context())
        telemetry.record_span("failover.detect", good_at_ns, noticed_ns, {"aurora.why": why}, parent=context)
        self._active[instance_id] = _Failover(span, context, cluster.name, good_at_ns, noticed_ns)

    @contextmanager
    def around(self, action: Action) -> Iterator[None]:
        """The trace that an action belongs to, if it belongs to one."""
        failover = self._of(action)
        if failover is None:
            yield
            return
        if not failover.decided and isinstance(action, KillInstance | StartInstance | OpenInstance):
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
        if isinstance(action, OpenInstance):
            failover, instance = (
                self._active.get(action.instance_id),
                self._plane.processes.instances.get(action.instance_id),
            )
            if failover is not None and instance is not None:
                failover.opened = instance.opened
                if not self._plane.endpoints.exist:
                    self._flipped(action.instance_id, failover)
        elif isinstance(action, PointEndpoints):
            for instance_id, failover in list(self._active.items()):
                cluster = next((c for c in self._plane.fleet.clusters if c.name == failover.cluster), None)
                if failover.opened is not None and cluster is not None and self._plane.endpoints.serves(cluster):
                    self._flipped(instance_id, failover)

    def asked(self, instance_id: str) -> None:
        """Someone wants the writer to move: the outage begins now."""
        now_ns = self._clock_ns()
        self.lost(instance_id, "a failover was asked for", now_ns, now_ns)

    def _flipped(self, instance_id: str, failover: _Failover) -> None:
        if not failover.flipped:
            failover.flipped = True
            work = self._await_write(instance_id, failover, self._clock_ns())
            self._plane.processes.tasks.start(work, f"first write of {instance_id}")

    async def _await_write(self, instance_id: str, failover: _Failover, flipped_ns: int) -> None:
        instance = self._plane.processes.instances.get(instance_id)
        write: tuple[int, int] | None = None
        if instance is not None:
            with contextlib.suppress(ProcessGoneError, TimeoutError):
                write = await instance.process.first_write(flipped_ns, FIRST_WRITE_TIMEOUT_S)
        if self._active.get(instance_id) is not failover or not failover.flipped:
            return  # lost again meanwhile
        del self._active[instance_id]
        end_ns = write[0] if write is not None else flipped_ns
        if write is not None:
            attributes = {"aurora.vdl": write[1]}
            telemetry.record_span("failover.first_write", flipped_ns, end_ns, attributes, parent=failover.context)
        self._finish(instance_id, failover, end_ns, written=write is not None)

    def _finish(self, instance_id: str, failover: _Failover, end_ns: int, *, written: bool) -> None:
        found, opened = self._declared(instance_id), failover.opened
        failover.span.set_attribute("aurora.first_write", written)
        if opened is not None:
            failover.span.set_attributes({"aurora.epoch": opened.epoch, "aurora.lsn.opened": opened.vdl})
        if found is not None:
            failover.span.set_attribute("aurora.az", found[1].az)
        failover.span.end(end_time=end_ns)
        outage_s = (end_ns - failover.good_at_ns) / 1e9
        _FAILOVERS.labels(failover.cluster).inc()
        _OUTAGE_S.observe(outage_s)
        self._plane.say(f"{failover.cluster} was without a writer for {outage_s:.2f} s")

    def _of(self, action: Action) -> _Failover | None:
        if isinstance(action, StartInstance | OpenInstance | KillInstance):
            return self._active.get(action.instance_id)
        if isinstance(action, PointEndpoints | StartEndpoints):
            return next(iter(self._active.values()), None)
        return None

    def _declared(self, instance_id: str) -> tuple[DBCluster, DBInstance] | None:
        for cluster in self._plane.fleet.clusters:
            for declared in cluster.instances:
                if declared.instance_id == instance_id:
                    return cluster, declared
        return None


async def move_writer(plane: ControlPlane, cluster: str, timeout_s: float) -> None:
    """Ends a cluster's writer in order and declares it for the next AZ whose nodes run; the loop starts it there.

    Raises UsageError unless it is available.
    """
    declared = plane.fleet.cluster(cluster).writer()
    instance = plane.processes.instances.get(declared.instance_id)
    if instance is None or instance.seen.phase is not InstancePhase.AVAILABLE:
        raise UsageError(f"the writer of {cluster} is not available: it is being recovered already")
    az = _next_az(plane, declared.az)
    await plane.commit(lambda fleet: fleet.with_instance(cluster, replace(declared, az=az)))
    plane.say(f"failover of {cluster} was asked for: {declared.instance_id} goes from {declared.az} to {az}")
    instance.unseen_end = False
    plane.failovers.asked(declared.instance_id)
    instance.seen = replace(instance.seen, phase=InstancePhase.STOPPING)
    plane.notify()  # sessions are cut before the engine ends
    try:
        await instance.process.end(fast=True, destroy=False, timeout_s=timeout_s)
    except TimeoutError:
        await instance.process.abort()

    def gone() -> bool:
        return plane.processes.instances.get(declared.instance_id) is not instance

    await plane.wait_until(gone, timeout_s, f"ending {declared.instance_id}")


def _next_az(plane: ControlPlane, az: str) -> str:
    """The next one, in the region's order, in which storage nodes run."""
    azs = plane.fleet.azs
    up = {node.az for node in plane.fleet.nodes if node.node_id in plane.processes.nodes}
    order = azs[azs.index(az) + 1 :] + azs[: azs.index(az)] if az in azs else azs
    return next((other for other in order if other in up), az)
