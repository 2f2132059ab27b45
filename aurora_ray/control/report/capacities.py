"""One trace per step of a capacity, and one per resume of a paused cluster.

    capacity.step                     from the look that showed the need to what is in force
      capacity.decide                 seen -> the step begins
      control.ScaleInstance
        capacity.place                more of its machine is held, before it is given
        capacity.give                 below it, in the instance's process: what the kernel and the engine are told

    capacity.resume                   from when somebody was seen to wait to when an endpoint leads to the engine
      capacity.decide                 seen -> it is declared that the cluster runs
      control.ResumeCluster           declared
      control.StartInstance           only where its process had ended
      control.OpenInstance            below it, in that process: seal, mount, engine
      capacity.lead                   open -> whoever waits is led there

A resume that a control plane does not live to end has no root: its parts are shown, and that it is unfinished.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context

from aurora_ray import telemetry
from aurora_ray.control.decide.reconcile import OpenInstance, StartInstance
from aurora_ray.control.decide.serverless import ResumeCluster, ScaleInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.trace import Span

    from aurora_ray.control.decide.reconcile import Action
    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.observe.endpoints import Endpoints
    from aurora_ray.control.observe.processes import Processes


@dataclass(slots=True)
class _Resume:
    span: Span
    context: Context
    declared: bool = False  # it is, that the cluster runs
    opened_ns: int = 0


class Capacities:
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
        self._resumes: dict[str, _Resume] = {}  # by cluster

    @contextmanager
    def around(self, action: Action) -> Iterator[None]:
        """The trace that an action belongs to, if it belongs to one."""
        if isinstance(action, ScaleInstance):
            with self._step(action):
                yield
            return
        resume = None
        if isinstance(action, ResumeCluster):
            resume = self._begin(action)
        elif isinstance(action, StartInstance | OpenInstance):
            resume = self._of(action.instance_id)
        if resume is None:
            yield
            return
        with telemetry.attached(resume.context):
            yield

    def done(self, action: Action) -> None:
        """An action was carried out."""
        if isinstance(action, ResumeCluster) and action.cluster in self._resumes:
            self._resumes[action.cluster].declared = True
        elif isinstance(action, OpenInstance) and (resume := self._of(action.instance_id)) is not None:
            resume.opened_ns = self._clock_ns()
        for name, each in list(self._resumes.items()):
            cluster = next((c for c in self._declared.fleet.clusters if c.name == name), None)
            if cluster is None or (each.declared and cluster.paused_since_s):
                self._end(name)
            elif each.opened_ns and self._endpoints.serves(cluster):
                telemetry.record_span("capacity.lead", each.opened_ns, self._clock_ns(), parent=each.context)
                self._end(name)

    @contextmanager
    def _step(self, action: ScaleInstance) -> Iterator[None]:
        now_ns = self._clock_ns()
        status = self._processes.last_status(action.instance_id)
        looked_ns = int(1e9 * float(status.stats.get("looked_at_unix_s", 0))) if status is not None else 0
        seen_ns = min(looked_ns or now_ns, now_ns)
        attributes: dict[str, str | float] = {
            "aurora.cluster": action.cluster,
            "aurora.instance": action.instance_id,
            "aurora.acu": action.acu,
            "aurora.why": action.why,
        }
        span = telemetry.start_span("capacity.step", attributes, parent=Context(), start_ns=seen_ns)
        context = trace.set_span_in_context(span, Context())
        telemetry.record_span("capacity.decide", seen_ns, now_ns, {"aurora.why": action.why}, parent=context)
        try:
            with telemetry.attached(context):
                yield
            there = self._processes.instances.get(action.instance_id)
            if there is not None and there.seen.capacity is not None:
                span.set_attribute("aurora.acu.in_force", there.seen.capacity.acu)
        except BaseException as error:
            span.set_status(trace.Status(trace.StatusCode.ERROR, str(error) or type(error).__name__))
            raise
        finally:
            span.end(end_time=self._clock_ns())

    def _begin(self, action: ResumeCluster) -> _Resume:
        self._end(action.cluster)
        now_ns = self._clock_ns()
        seen_ns = min(self._endpoints.held_since_ns.get(action.cluster, now_ns), now_ns)
        attributes = {"aurora.cluster": action.cluster, "aurora.why": action.why}
        span = telemetry.start_span("capacity.resume", attributes, parent=Context(), start_ns=seen_ns)
        resume = self._resumes[action.cluster] = _Resume(span, trace.set_span_in_context(span, Context()))
        telemetry.record_span("capacity.decide", seen_ns, now_ns, {"aurora.why": action.why}, parent=resume.context)
        return resume

    def _of(self, instance_id: str) -> _Resume | None:
        """Of the cluster whose writer that is."""
        cluster = self._declared.fleet.cluster_of(instance_id) if self._resumes else None
        if cluster is None or cluster.writer().instance_id != instance_id:
            return None
        return self._resumes.get(cluster.name)

    def _end(self, name: str) -> None:
        if (resume := self._resumes.pop(name, None)) is not None:
            resume.span.end(end_time=self._clock_ns())
