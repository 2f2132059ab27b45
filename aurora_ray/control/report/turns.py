"""One trace per change of a global cluster's primary, over both regions that it changes between.

    turn                          from when it is declared in the region that takes over to the first write there
      control.AskToMakeWay        a switchover's; what the old primary does because of that is below it:
        ChangeRole, Drain, ...      its writer ends, and its volume is drained
      control.NoteEnd, NoteReached, Promote
      control.ChangeRole, OpenInstance  the writer opens
      control.PointEndpoints      sessions are led to it
      turn.first_write            -> the first advance of the VDL there

The request to make way carries the trace to the old primary's control plane. One that is gone is in no trace; what it
does when it is back is not waited for. If nobody writes, the trace ends with the endpoint, and says so
(`aurora.first_write`). A control plane that takes over goes on in a trace of its own, from what is declared.
"""

from __future__ import annotations

import contextlib
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context, get_current

from aurora_ray import telemetry
from aurora_ray.compute.commands import FirstWrite
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.control.observe.endpoints import PointEndpoints, StartEndpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.trace import Span

    from aurora_ray.control.decide.reconcile import Action
    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.model.state import DBCluster
    from aurora_ray.control.observe.endpoints import Endpoints
    from aurora_ray.control.observe.processes import Processes
    from aurora_ray.replication.turnover import Turnover

FIRST_WRITE_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class _Turn:
    generation: int
    context: Context
    span: Span | None = None  # None: of another region's turn
    led: bool = False


class Turns:
    """Belongs to the control plane's event loop. It only watches: nothing depends on it."""

    def __init__(
        self,
        declared: Declared,
        processes: Processes,
        endpoints: Endpoints,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._declared, self._processes, self._endpoints = declared, processes, endpoints
        self._clock_ns = clock_ns
        self._active: dict[str, _Turn] = {}  # by cluster

    def watch(self) -> None:
        """What is declared may have changed."""
        for gone in self._active.keys() - {cluster.name for cluster in self._declared.fleet.clusters}:
            self._end(gone, self._clock_ns())
        for cluster in self._declared.fleet.clusters:
            known, active = cluster.membership, self._active.get(cluster.name)
            turnover = known.turnover if known is not None else None
            if turnover is not None and (active is None or active.generation < turnover.generation):
                self._begin(cluster.name, turnover)
            elif turnover is None and active is not None:
                self._look_at(cluster, active)

    def joined(self, cluster: str, generation: int) -> None:
        """Another region's turn asks this one to make way: what is done for that belongs to its trace."""
        self._end(cluster, self._clock_ns())
        self._active[cluster] = _Turn(generation, get_current())

    @contextmanager
    def around(self, action: Action) -> Iterator[None]:
        """The trace that an action belongs to, if it belongs to one."""
        turn = self._of(action)
        with telemetry.attached(turn.context) if turn is not None else contextlib.nullcontext():
            yield

    def _begin(self, cluster: str, turnover: Turnover) -> None:
        now_ns = self._clock_ns()
        self._end(cluster, now_ns)
        attributes: dict[str, str | int] = {
            "aurora.cluster": cluster,
            "aurora.way": turnover.way.value,
            "aurora.region.from": turnover.old,
            "aurora.region.to": turnover.new,
            "aurora.generation": turnover.generation,
        }
        span = telemetry.start_span("turn", attributes, parent=Context(), start_ns=now_ns)
        self._active[cluster] = _Turn(turnover.generation, trace.set_span_in_context(span, Context()), span)

    def _look_at(self, cluster: DBCluster, turn: _Turn) -> None:
        """A turn that is not declared any more: promoted here, or elsewhere, or given up."""
        if turn.span is None:
            if cluster.generation >= turn.generation:  # it follows
                self._end(cluster.name, self._clock_ns())
        elif cluster.is_secondary:
            turn.span.set_status(trace.Status(trace.StatusCode.ERROR, "it was given up"))
            self._end(cluster.name, self._clock_ns())
        elif not turn.led and self._endpoints.serves(cluster):
            turn.led = True
            work = self._await_write(cluster, turn, self._clock_ns())
            self._processes.tasks.start(work, f"first write of {cluster.name}")

    async def _await_write(self, cluster: DBCluster, turn: _Turn, led_ns: int) -> None:
        instance = self._processes.instances.get(cluster.writer().instance_id)
        write: tuple[int, int] | None = None
        if instance is not None:
            with contextlib.suppress(ProcessGoneError, TimeoutError):
                write = await instance.process.do(FirstWrite(led_ns, FIRST_WRITE_TIMEOUT_S))
        if self._active.get(cluster.name) is not turn or turn.span is None:
            return
        end_ns = write[0] if write is not None else led_ns
        turn.span.set_attribute("aurora.first_write", write is not None)
        if write is not None:
            telemetry.record_span("turn.first_write", led_ns, end_ns, {"aurora.vdl": write[1]}, parent=turn.context)
        self._end(cluster.name, end_ns)

    def _of(self, action: Action) -> _Turn | None:
        if not self._active:
            return None
        if isinstance(action, PointEndpoints | StartEndpoints):  # those of all clusters
            return next(iter(self._active.values()))
        name = getattr(action, "cluster", "")
        if not name and (instance := getattr(action, "instance_id", "")):
            cluster = self._declared.fleet.cluster_of(instance)
            name = cluster.name if cluster is not None else ""
        return self._active.get(name)

    def _end(self, cluster: str, at_ns: int) -> None:
        turn = self._active.pop(cluster, None)
        if turn is not None and turn.span is not None:
            turn.span.end(end_time=at_ns)
