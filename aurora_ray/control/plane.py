"""The control plane: keeps what is declared and what is observed, and carries out what `reconcile.decide` says.

A loop observes, decides and starts actions, every `TICK_S` and as soon as anything changes. Each action is a task; when
it ends, its result is noted (in the declared state if it must survive, else in memory) and the loop looks again. What
was done and is wanted again in the same words waits a moment (`AGAIN_AFTER_S`), so that nothing makes the loop spin.

Nothing in memory is needed after a crash: the next control plane reads the bootstrap file, finds the processes that
still run, opens the control volume (fencing this one) and decides from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from aurora_ray import telemetry
from aurora_ray.compute.role import Role
from aurora_ray.control.decide import backups, forks, graveyard, promoting, reconcile, regional, replacement, sizing
from aurora_ray.control.decide.ailing import AilingNodes
from aurora_ray.control.decide.metering import Meter, reading_of
from aurora_ray.control.decide.replacement import ReplaceRules
from aurora_ray.control.decide.scaling import Scaling
from aurora_ray.control.decide.serverless import EndpointUse, Serverless, fitted
from aurora_ray.control.faults.chaos import Chaos
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.attempt import Attempt
from aurora_ray.control.model.changes import Changes
from aurora_ray.control.model.custom_endpoints import CLUSTER
from aurora_ray.control.model.declared import Declared, passed_over
from aurora_ray.control.model.journal import Journal
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen, Observed
from aurora_ray.control.model.runtime import SupersededError
from aurora_ray.control.observe import replicas
from aurora_ray.control.observe.endpoints import Endpoints, PointEndpoints, StartEndpoints
from aurora_ray.control.observe.heartbeats import Heartbeats, KillInstance
from aurora_ray.control.observe.pools import Pools
from aurora_ray.control.observe.processes import Processes
from aurora_ray.control.observe.refusals import Refusals
from aurora_ray.control.observe.regions import Regions
from aurora_ray.control.observe.space import limit_troubles, space_troubles
from aurora_ray.control.perform import passfiles
from aurora_ray.control.perform.means import END_TIMEOUT_S, Means
from aurora_ray.control.perform.regions import Volumes
from aurora_ray.control.perform.steps import perform
from aurora_ray.control.report.capacities import Capacities
from aurora_ray.control.report.events import EventKind, EventLog
from aurora_ray.control.report.failovers import Failovers
from aurora_ray.control.report.metrics import fleet_metrics
from aurora_ray.control.report.metrics_port import MetricsPort
from aurora_ray.control.report.turns import Turns
from aurora_ray.control.report.usage import UsageLog
from aurora_ray.errors import AuroraError, FencedError, MalformedError, QuorumLostError, UsageError
from aurora_ray.troubles import Trouble
from aurora_ray.volume.spec import NodeAddress

if TYPE_CHECKING:
    from aurora_ray.control.model.endpoint_runtime import EndpointRuntime
    from aurora_ray.control.model.runtime import ControlConfig, Runtime
    from aurora_ray.control.model.state import Fleet

_log = logging.getLogger(__name__)

TICK_S: Final = 0.25
STATUS_EVERY_S: Final = 1.0
LOOK_AT_NODES_EVERY_S: Final = 2.0
CAPACITY_EVERY_S: Final = 0.2  # that is each tick
AGAIN_AFTER_S: Final = 0.1  # what was done and is wanted again in the same words, as its effect was not seen yet
SETTLED_AFTER_S: Final = 5.0  # an instance that ends sooner counts as a failed attempt, so that it cannot spin


class ControlPlane:
    """All methods belong to one event loop. `clock` is monotonic, in seconds. Without `endpoints` there are none."""

    def __init__(
        self,
        config: ControlConfig,
        runtime: Runtime,
        *,
        endpoints: EndpointRuntime | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.attempts: dict[Key, Attempt] = {}
        self.changes, self.journal = Changes(), Journal()
        self.notify, self.wait_until, self.say = self.changes.notify, self.changes.wait_until, self.journal.say
        self.declared = Declared(config, self.say, self.notify)
        self.commit = self.declared.commit
        self.processes = Processes(
            runtime,
            clock=clock,
            say=self.say,
            on_change=self.notify,
            on_end=self._incarnation_ended,
            on_lost=self._lost,
        )
        self.endpoints = Endpoints(endpoints, config, tasks=self.processes.tasks, say=self.say, on_change=self.notify)
        self.events = EventLog(config.data_dir)
        self.heartbeats = Heartbeats(self.declared, self.processes, self.changes, config.health_rules, self.hung)
        self.failovers = Failovers(config.data_dir, self.declared, self.processes, self.endpoints, say=self.say)
        watched = self.declared, self.processes, self.endpoints
        self.capacities, self.turns = Capacities(*watched), Turns(*watched)
        self.replicas, self.refusals = replicas.Replicas(), Refusals(clock)
        self.metrics_port = MetricsPort(self.metrics, self.say)
        self.regions = Regions(
            config,
            self.declared,
            self.processes,
            volumes=Volumes,
            clock=clock,
            on_change=self.notify,
            serving=lambda cluster: self.replicas.serving(cluster, self.processes.instances, clock(), config.region),
            endpoint=lambda cluster: self.endpoints.address(cluster, CLUSTER, self.processes.instances),
        )
        self.chaos = Chaos(config, self.declared, self.processes, self.changes, say=self.say)
        self.meter, self.usage_log, self.pools = Meter(), UsageLog(config.data_dir), Pools(runtime, clock)
        self.means = Means(
            config,
            self.declared,
            self.processes,
            self.events,
            self.say,
            self.notify,
            self.chaos.cut_off,
            self.open_store,
            lambda: self.runs_for_s,
            lambda cluster: self.endpoints.withdrawn(cluster, self.declared.epoch),
            lambda what: self.attempts.pop(what, None),
            self.regions,
            self._save_usage,
            self.pools,
            self.failovers.asked,
        )
        self.serverless = Serverless()
        self._used: dict[str, EndpointUse] = {}
        self._rules = ReplaceRules(config.replace_after_s, config.replace_empty_after_s)
        self._ailing = AilingNodes()
        self._scaling = Scaling()
        self._clock = clock
        self._busy: dict[Key, asyncio.Task[None]] = {}
        self._done: dict[Key, tuple[reconcile.Action, float]] = {}  # when, for as long as that matters
        self._stopping = False
        self._began_s = clock()
        self._looked_at_s = self._looked_at_capacity_s = self._looked_at_nodes_s = 0.0

    # ---- what it knows

    @property
    def fleet(self) -> Fleet:
        """What is declared, in force."""
        return self.declared.fleet

    @property
    def is_open(self) -> bool:
        """Whether the declared state is loaded; until then it has no clusters."""
        return self.declared.is_open

    @property
    def runs_for_s(self) -> float:
        """For how long this control plane has been looking, in seconds."""
        return self._clock() - self._began_s

    @property
    def notes(self) -> tuple[str, ...]:
        """What the last cycle said has to wait."""
        return self.changes.notes

    def troubles(self) -> list[Trouble]:
        """What the control plane, writers and storage nodes say of themselves, as last looked at."""
        nodes = self.processes.nodes.items()
        states = {node_id: node.state for node_id, node in nodes if node.state is not None and not node.seen.silent}
        for node_id, state in states.items():
            self.refusals.saw(node_id, state.counters.get("refused_unauthenticated", 0))
        statuses = [instance.status for instance in self.processes.instances.values()]
        return [
            *self.own_troubles(),
            *space_troubles(states),
            *(trouble for s in statuses if s is not None for trouble in s.troubles),
        ]

    def own_troubles(self) -> list[Trouble]:
        """What the control plane finds itself."""
        seen = {instance_id: instance.seen for instance_id, instance in self.processes.instances.items()}
        full = limit_troubles(self.fleet, seen, self.config.volume_limit_bytes)
        return [*self.declared.troubles(), *self.refusals.troubles(), *full]

    def observe(self) -> Observed:
        """A consistent picture for one decision."""
        nodes = {node_id: node.seen for node_id, node in self.processes.nodes.items()}
        return Observed(
            nodes=nodes,
            instances={instance_id: instance.seen for instance_id, instance in self.processes.instances.items()},
            unsure=frozenset(self.processes.unsure),
            control_open=self.is_open,
            busy=frozenset(self._busy),
            held=self.chaos.held(),
            attempts=dict(self.attempts),
            control_placements=self.declared.store.placements if self.declared.store is not None else (),
            volume_limit_bytes=self.config.volume_limit_bytes,
            ailing=self._ailing.look(self.fleet, nodes, self._clock()),
            abroad=self.regions.observe(),
            lost=frozenset(self.processes.lost),
        )

    async def metrics(self) -> bytes:
        """All metrics of the fleet, as Prometheus text."""
        return await fleet_metrics(self.fleet, self.processes, self.endpoints, self.own_troubles(), self.meter)

    def addresses(self) -> tuple[NodeAddress, ...]:
        """The running storage nodes, for a volume client."""
        return self.processes.addresses(self.fleet.nodes)

    # ---- the loop

    async def run(self) -> None:
        """Runs until `shutdown`. Raises SupersededError when another control plane has taken over."""
        bootstrap.save(self.config.data_dir, self.fleet)
        await self.processes.adopt(self.fleet.nodes)
        await self.endpoints.adopt()
        await self.chaos.adopt()
        while not self._stopping:
            if self.declared.is_superseded:
                await self.processes.tasks.cancel()
                raise SupersededError("another control plane has taken over; this one ends")
            self.changes.begin()
            self._cycle()
            await self.changes.next(TICK_S)

    def _cycle(self) -> None:
        now_s = self._clock()
        if not self.declared.file_follows:
            self.declared.follow()
        instances, observed = self.processes.instances, self.observe()
        further = chain(
            replacement.wanted(self.fleet, observed, now_s, self._rules),
            graveyard.wanted(self.fleet, time.time()) if self.is_open else (),
            forks.wanted(self.fleet, observed, time.time()),
            backups.wanted(self.fleet, observed),
            regional.wanted(self.fleet, observed),
            sizing.wanted(self.fleet, observed.instances) if self.is_open else (),
            self._scaling.wanted(self.fleet, observed.instances, now_s, time.time()) if self.is_open else (),
            self._capacity(observed.instances, now_s) if self.is_open else (),
            self._metered() if self.is_open else (),
            self.endpoints.wanted(self.fleet, instances, control_open=self.is_open, now_s=now_s),
            self.heartbeats.wanted(),
        )
        first = promoting.ahead(self.fleet, observed) if self.config.promote_in_place else promoting.NOTHING
        observed = replace(observed, held=observed.held | first.waiting)
        plan = reconcile.decide(self.fleet, observed, now_s, ahead=first.wanted, further=further)
        for note in plan.notes:
            if note not in self.notes:
                self.say(note)
        self.changes.notes = plan.notes
        self.turns.watch()
        self._done = {what: done for what, done in self._done.items() if now_s - done[1] < AGAIN_AFTER_S}
        for action in plan.actions:
            if action.key in self._done and self._done[action.key][0] == action:
                continue
            self.say(f"{type(action).__name__} {action.key.partition(':')[2]}: {action.why}".replace(" :", ":"))
            self._start(action.key, self._carry_out(action))
        self._look_around(now_s)

    def _capacity(self, seen: Mapping[str, InstanceSeen], now_s: float) -> Iterator[reconcile.Action]:
        held, short = self.endpoints.held, self.pools.short()
        yield from self.serverless.wanted(self.fleet, seen, self._used, held, now_s, time.time(), short)
        yield from fitted(self.fleet, seen, self.pools.held, short)

    def _metered(self) -> Iterator[reconcile.Action]:
        processes, wall_s = self.processes, time.time()
        said = {
            i.instance_id: (processes.instances.get(i.instance_id), processes.last_status(i.instance_id))
            for cluster in self.fleet.clusters
            for i in cluster.instances
        }
        readings = {of: reading_of(i.seen if i is not None else None, status) for of, (i, status) in said.items()}
        self.meter.look(self.fleet, {of: each for of, each in readings.items() if each is not None}, wall_s)
        return self.meter.wanted(wall_s)

    async def _save_usage(self) -> None:
        wall_s = time.time()
        counts = self.meter.pack(wall_s)
        self.usage_log.note(self.fleet, self.meter, wall_s)
        try:
            await self.declared.save_usage(counts)
        except BaseException:
            self.meter.failed()
            raise

    async def _look_at_endpoints(self) -> None:
        """How much each cluster is used that could be paused."""
        self._used = await self.endpoints.use(STATUS_EVERY_S)

    def _look_at_capacity(self, now_s: float) -> None:
        """More often, as what is wanted shall be in force within a second."""
        if now_s - self._looked_at_capacity_s < CAPACITY_EVERY_S:
            return
        self._looked_at_capacity_s = now_s
        for instance_id, instance in self.processes.instances.items():
            look = key(Kind.LOOK_AT_INSTANCE, instance_id)
            if instance.seen.capacity is not None and look not in self._busy:
                self._start(look, self.processes.refresh(instance_id))
        look, running = key(Kind.LOOK_AT_ENDPOINTS), (c for c in self.fleet.clusters if not c.paused_since_s)
        if any(c.capacity is not None and c.capacity.pauses for c in running) and look not in self._busy:
            self._start(look, self._look_at_endpoints())

    def _look_around(self, now_s: float) -> None:
        self._look_at_capacity(now_s)
        if now_s - self._looked_at_s >= STATUS_EVERY_S:
            self._looked_at_s = now_s
            self.events.compare(self.troubles())
            for instance_id, instance in self.processes.instances.items():
                look = key(Kind.LOOK_AT_INSTANCE, instance_id)
                up = instance.seen.phase in (InstancePhase.AVAILABLE, InstancePhase.OPENING)
                if up and look not in self._busy:
                    self._start(look, self.processes.refresh(instance_id))
            for instance_id, commands in self.replicas.orders(
                self.fleet, self.processes.instances, now_s, self.regions.rows(time.time()), self.regions.writers()
            ):
                if (what := key(Kind.REPLICAS, instance_id)) not in self._busy:
                    self._start(what, replicas.tell(self.processes.instances[instance_id], commands))
        self._limit_commits()
        for cluster, peer in self.regions.due(now_s) if self.is_open else ():
            if (look := key(Kind.LOOK_AT_REGION, f"{cluster.name}/{peer.region}")) not in self._busy:
                self._start(look, self.regions.exchange(cluster, peer))
        if now_s - self._looked_at_nodes_s >= LOOK_AT_NODES_EVERY_S:
            self._looked_at_nodes_s = now_s
            for node_id in self.processes.nodes:
                look = key(Kind.LOOK_AT_NODE, node_id)
                if look not in self._busy:
                    self._start(look, self.processes.look_at_node(node_id))

    def _limit_commits(self) -> None:
        """Writers of global clusters are told until when they may acknowledge commits."""
        for cluster in self.fleet.clusters if self.is_open else ():
            if (known := cluster.membership) is None:
                continue
            writer = self.processes.instances.get(cluster.writer().instance_id)
            if writer is None or not writer.seen.serves(Role.WRITER):
                continue
            if (what := key(Kind.COMMITS, cluster.name)) not in self._busy and self.regions.leases.is_due(cluster):
                self._start(what, self.regions.leases.tell(cluster, known, writer))

    def _start(self, what: Key, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            if self._busy.get(what) is task:  # else the next one of the key has begun already
                del self._busy[what]

        self._busy[what] = self.processes.tasks.start(work, what)
        self._busy[what].add_done_callback(ended)

    async def _carry_out(self, action: reconcile.Action) -> None:
        attributes = {"aurora.key": action.key, "aurora.why": action.why}
        try:
            belongs = self.failovers.around(action), self.capacities.around(action), self.turns.around(action)
            with belongs[0], belongs[1], belongs[2], telemetry.span(f"control.{type(action).__name__}", attributes):
                if isinstance(action, StartEndpoints | PointEndpoints):
                    await self.endpoints.perform(action, self.declared.epoch, self._clock())
                elif isinstance(action, KillInstance):
                    await self.heartbeats.perform(action)
                else:
                    await perform(self.means, action)
            self.failovers.done(action)
            self.capacities.done(action)
        except SupersededError:
            self.declared.supersede()
        except Exception as error:
            if not isinstance(error, AuroraError):
                _log.exception("%s failed", action.key)
            self._failed(action.key, error)
        else:
            self.attempts.pop(action.key, None)
            self._done[action.key] = action, self._clock()
        finally:
            self._busy.pop(action.key, None)
            self.notify()

    def _failed(self, what: Key, error: Exception) -> None:
        # A writer that was fenced is opened in a higher epoch.
        retryable = not isinstance(error, AuroraError) or error.retryable or isinstance(error, FencedError)
        text = str(error) or type(error).__name__
        before = self.attempts.get(what)
        self.attempts[what] = Attempt.after_failure(before, text, retryable=retryable, now_s=self._clock())
        self.say(f"{what} failed: {text}")

    def _lost(self, instance_id: str, why: str, good_at_ns: int, noticed_ns: int) -> None:
        cluster = self.fleet.cluster_of(instance_id)
        follows = cluster is not None and not cluster.instance(instance_id).role.traits.writes
        last = self.processes.last_status(instance_id)
        if last is not None and last.role.traits.writes and not follows:
            self.processes.lost.add(instance_id)
        kind = EventKind.READER if follows else EventKind.FAILOVER
        self.events.note(kind, instance_id, why, cluster.name if cluster is not None else None)
        self.failovers.lost(instance_id, why, good_at_ns or self.heartbeats.good_at_ns(instance_id), noticed_ns)

    def hung(self, instance_id: str, why: str, good_at_ns: int) -> None:
        """Its process is going to be killed. `good_at_ns`: 0 for the last heartbeat's."""
        instance = self.processes.instances.get(instance_id)
        if instance is not None and instance.end_is_seen():
            self._lost(instance_id, f"the process of {instance_id} is hung: {why}", good_at_ns, 0)

    def _incarnation_ended(self, instance_id: str, reason: str, lasted_s: float) -> None:
        if lasted_s < SETTLED_AFTER_S:
            self._failed(key(Kind.INSTANCE, instance_id), QuorumLostError(f"it ended after {lasted_s:.1f} s: {reason}"))

    # ---- declared state

    async def open_store_by(self, *, choice: int | None = None, rebuilt: Fleet | None = None) -> None:
        """The same by somebody's word, with the version chosen or with a state that was made anew. Raises UsageError if
        one is in force, and as `open_store`."""
        control = key(Kind.CONTROL)
        while control in self._busy:  # two openings at a time would fence each other, and end us
            await asyncio.gather(self._busy[control], return_exceptions=True)
        if self.is_open:
            raise UsageError("a control state is in force by now: look again")
        self._start(control, self.open_store(choice=choice, rebuilt=rebuilt))
        await self._busy[control]
        self.attempts.pop(control, None)
        self.notify()

    async def open_store(self, *, choice: int | None = None, rebuilt: Fleet | None = None) -> None:
        """See Declared.open; what is found is told."""
        store = await self.declared.open(self.addresses(), choice=choice, rebuilt=rebuilt)
        try:
            self.meter.load(store.usage)
        except MalformedError as error:
            self.say(str(error))
            self.events.note(EventKind.STATE, "control", f"{error}: counting begins anew")
        self.failovers.take_over()
        passfiles.follow(self.config.data_dir, self.fleet, self.say)
        for version in store.damaged:
            self.say(passed_over(version))
            self.events.note(EventKind.STATE, "control", passed_over(version))
        opened = f"the control state is open in epoch {store.epoch}, revision {self.fleet.revision}"
        self.say(opened)
        self.events.note(EventKind.FLEET, "control", opened)

    # ---- the end

    async def shutdown(self, *, destroy: bool = False) -> None:
        """Stops everything in order: endpoints, engines, control state, storage nodes. What is declared stays so."""
        self._stopping = True
        self.notify()
        self.say("everything is asked to stop")
        self.events.note(EventKind.FLEET, "control", "the fleet is stopped" + (" and removed" if destroy else ""))
        processes = self.processes
        self.metrics_port.close()
        await processes.tasks.cancel()
        self.chaos.end()
        self.failovers.forget()
        await _all([self.endpoints.end()])
        instances, processes.instances = processes.instances, {}
        await _all(
            i.process.end(fast=not destroy, destroy=destroy, timeout_s=END_TIMEOUT_S) for i in instances.values()
        )
        await _all([processes.runtime.end_waiting()])
        if self.declared.store is not None:
            await _all([self.declared.store.close()])
        await self.regions.close()
        await processes.clients.close()
        nodes, processes.nodes = processes.nodes, {}
        await _all(n.process.stop(destroy=destroy, timeout_s=END_TIMEOUT_S) for n in nodes.values())


async def _all(steps: Iterable[Awaitable[None]]) -> None:
    """Does all steps at once; one that fails is logged and holds up no other."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, Exception):
            _log.warning("while stopping: %s", result)
