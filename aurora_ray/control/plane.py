"""The control plane: keeps what is declared and what is observed, and carries out what `reconcile.decide` says.

A loop observes, decides and starts actions, every `TICK_S` and as soon as anything changes. Each action is a task; when
it ends, its result is noted (in the declared state if it must survive, else in memory) and the loop looks again.

Nothing in memory is needed after a crash: the next control plane reads the bootstrap file, finds the processes that
still run, opens the control volume (fencing this one) and decides from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from aurora_ray import telemetry
from aurora_ray.control.decide import reconcile, replacement
from aurora_ray.control.decide.ailing import Sickbed
from aurora_ray.control.decide.replacement import ReplaceRules
from aurora_ray.control.faults.chaos import Chaos
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.attempt import Attempt
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.observed import InstancePhase, Observed
from aurora_ray.control.model.runtime import SupersededError
from aurora_ray.control.model.store import ControlStore
from aurora_ray.control.observe.heartbeats import Heartbeats, KillInstance
from aurora_ray.control.observe.processes import Processes
from aurora_ray.control.observe.space import space_troubles
from aurora_ray.control.perform import graveyard, sizing
from aurora_ray.control.perform.endpoints import Endpoints, PointEndpoints, StartEndpoints
from aurora_ray.control.perform.steps import END_TIMEOUT_S, perform
from aurora_ray.control.report.events import EventKind, EventLog
from aurora_ray.control.report.failovers import Failovers
from aurora_ray.control.report.metrics_port import MetricsPort
from aurora_ray.errors import AuroraError, ConfigurationError, FencedError, QuorumLostError, UsageError
from aurora_ray.troubles import Trouble, TroubleCode
from aurora_ray.volume.spec import NodeAddress

if TYPE_CHECKING:
    from aurora_ray.control.model.runtime import ControlConfig, Runtime
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.model.store import Version
    from aurora_ray.control.perform.endpoints import EndpointRuntime

_log = logging.getLogger(__name__)

TICK_S: Final = 0.25
STATUS_EVERY_S: Final = 1.0
LOOK_AT_NODES_EVERY_S: Final = 2.0
OPEN_CONTROL_TIMEOUT_S: Final = 30.0
SETTLED_AFTER_S: Final = 5.0  # an instance that ends sooner counts as a failed attempt, so that it cannot spin
TRAIL_SENTENCES: Final = 500


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
        self.fleet = bootstrap.found_or_new(config.data_dir, config.region, config.azs, config.fleet_id)
        self.attempts: dict[Key, Attempt] = {}
        self.trail: deque[tuple[float, str]] = deque(maxlen=TRAIL_SENTENCES)
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
        self.heartbeats = Heartbeats(self, config.health_rules)
        self.failovers = Failovers(self)
        self.metrics_port = MetricsPort(self)
        self.chaos = Chaos(self)
        self._rules = ReplaceRules(config.replace_after_s, config.replace_empty_after_s)
        self._sickbed = Sickbed()
        self._clock = clock
        self._store: ControlStore | None = None
        self._busy: dict[Key, asyncio.Task[None]] = {}
        self._saving = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._fenced = asyncio.Event()
        self._plan = reconcile.Plan((), ())
        self._file_problem = ""  # why the bootstrap file does not follow
        self._began_s = clock()
        self._looked_at_s = 0.0
        self._looked_at_nodes_s = 0.0

    # ---- what it knows

    @property
    def is_open(self) -> bool:
        """Whether the declared state is loaded; until then it has no clusters."""
        return self._store is not None

    @property
    def runs_for_s(self) -> float:
        """For how long this control plane has been looking, in seconds."""
        return self._clock() - self._began_s

    @property
    def is_superseded(self) -> bool:
        """Whether another control plane has taken over: what this one knows is old."""
        return self._fenced.is_set()

    @property
    def epoch(self) -> int:
        """The control volume's epoch; 0 before it is open."""
        return self._store.epoch if self._store is not None else 0

    @property
    def store(self) -> ControlStore | None:
        """The control volume, once it is open."""
        return self._store

    @property
    def notes(self) -> tuple[str, ...]:
        """What the last cycle said has to wait."""
        return self._plan.notes

    def troubles(self) -> list[Trouble]:
        """What is not as it shall be with the control plane itself."""
        found = []
        if self._file_problem:
            found.append(Trouble(TroubleCode.FLEET_FILE, "control", self._file_problem))
        damaged = self._store.damaged if self._store is not None else ()
        found += [Trouble(TroubleCode.STATE_DAMAGED, "control", _passed_over(version)) for version in damaged]
        return found

    def all_troubles(self) -> list[Trouble]:
        """Those, and what writers and storage nodes say of themselves, as last looked at."""
        nodes = self.processes.nodes.items()
        states = {node_id: node.state for node_id, node in nodes if node.state is not None and not node.seen.silent}
        statuses = [instance.status for instance in self.processes.instances.values()]
        return [
            *self.troubles(),
            *space_troubles(states),
            *(trouble for s in statuses if s is not None for trouble in s.troubles),
        ]

    def observe(self) -> Observed:
        """A consistent picture for one decision."""
        nodes = {node_id: node.seen for node_id, node in self.processes.nodes.items()}
        return Observed(
            nodes=nodes,
            instances={instance_id: instance.seen for instance_id, instance in self.processes.instances.items()},
            control_open=self._store is not None,
            busy=frozenset(self._busy),
            held=self.chaos.held(),
            attempts=dict(self.attempts),
            control_placements=self._store.placements if self._store is not None else (),
            ailing=self._sickbed.look(self.fleet, nodes, self._clock()),
        )

    def addresses(self) -> tuple[NodeAddress, ...]:
        """The running storage nodes, for a volume client."""
        azs = {node.node_id: node.az for node in self.fleet.nodes}
        running = sorted(self.processes.nodes.items())
        return tuple(NodeAddress(n, azs[n], node.seen.address) for n, node in running if n in azs)

    def say(self, sentence: str) -> None:
        """Notes what happened or was decided, for people."""
        self.trail.append((time.time(), sentence))
        _log.info("%s", sentence)

    # ---- the loop

    async def run(self) -> None:
        """Runs until `shutdown`. Raises SupersededError when another control plane has taken over."""
        bootstrap.save(self.config.data_dir, self.fleet)
        await self.processes.adopt(self.fleet.nodes)
        await self.endpoints.adopt()
        await self.chaos.adopt()
        while not self._stopping:
            if self._fenced.is_set():
                await self.processes.tasks.cancel()
                raise SupersededError("another control plane has taken over; this one ends")
            self._wake.clear()
            self._cycle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()

    def _cycle(self) -> None:
        now_s = self._clock()
        if self._file_problem:
            self._note_fleet()
        instances, observed = self.processes.instances, self.observe()
        further = chain(
            replacement.wanted(self.fleet, observed, now_s, self._rules),
            graveyard.wanted(self.fleet, time.time()) if self.is_open else (),
            sizing.wanted(self.fleet, observed.instances) if self.is_open else (),
            self.endpoints.wanted(self.fleet, instances, control_open=self.is_open, now_s=now_s),
            self.heartbeats.wanted(),
        )
        plan = reconcile.decide(self.fleet, observed, now_s, further=further)
        for note in plan.notes:
            if note not in self._plan.notes:
                self.say(note)
        self._plan = plan
        for action in plan.actions:
            self.say(f"{type(action).__name__} {action.key.partition(':')[2]}: {action.why}".replace(" :", ":"))
            self._start(action.key, self._carry_out(action))
        self._look_around(now_s)

    def _look_around(self, now_s: float) -> None:
        if now_s - self._looked_at_s >= STATUS_EVERY_S:
            self._looked_at_s = now_s
            self.events.compare(self.all_troubles())
            for instance_id, instance in self.processes.instances.items():
                look = key(Kind.LOOK_AT_INSTANCE, instance_id)
                if instance.seen.phase is InstancePhase.AVAILABLE and look not in self._busy:
                    self._start(look, self.processes.refresh(instance_id))
        if now_s - self._looked_at_nodes_s >= LOOK_AT_NODES_EVERY_S:
            self._looked_at_nodes_s = now_s
            for node_id in self.processes.nodes:
                look = key(Kind.LOOK_AT_NODE, node_id)
                if look not in self._busy:
                    self._start(look, self.processes.look_at_node(node_id))

    def _start(self, what: Key, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            if self._busy.get(what) is task:  # else the next one of the key has begun already
                del self._busy[what]

        self._busy[what] = self.processes.tasks.start(work, what)
        self._busy[what].add_done_callback(ended)

    def notify(self) -> None:
        """Something changed: decide anew, and let those who wait for a state look again."""
        self._wake.set()
        self.processes.tasks.start(self._tell_waiters(), "tell waiters")

    async def _tell_waiters(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Waits for a state; `condition` may raise to give up. Raises QuorumLostError when the time is over."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            notes = "; ".join(self.notes) or "no reason is known"
            raise QuorumLostError(f"{what} took longer than {timeout_s:g} s: {notes}") from None

    async def _carry_out(self, action: reconcile.Action) -> None:
        attributes = {"aurora.key": action.key, "aurora.why": action.why}
        try:
            with self.failovers.around(action), telemetry.span(f"control.{type(action).__name__}", attributes):
                if isinstance(action, StartEndpoints | PointEndpoints):
                    await self.endpoints.perform(action, self.epoch, self._clock())
                elif isinstance(action, KillInstance):
                    await self.heartbeats.perform(action)
                else:
                    await perform(self, action)
            self.failovers.done(action)
        except SupersededError:
            self._fenced.set()
        except Exception as error:
            if not isinstance(error, AuroraError):
                _log.exception("%s failed", action.key)
            self._failed(action.key, error)
        else:
            self.attempts.pop(action.key, None)
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
        self.events.note(EventKind.FAILOVER, instance_id, why, self._cluster_of(instance_id))
        self.failovers.lost(instance_id, why, good_at_ns or self.heartbeats.good_at_ns(instance_id), noticed_ns)

    def _cluster_of(self, instance_id: str) -> str | None:
        clusters = self.fleet.clusters
        return next((c.name for c in clusters if any(i.instance_id == instance_id for i in c.instances)), None)

    def hung(self, instance_id: str, why: str, good_at_ns: int = 0) -> None:
        """Its process was found to hang, and is going to be killed. `good_at_ns`: 0 for the last heartbeat's."""
        instance = self.processes.instances.get(instance_id)
        if instance is not None and instance.unseen_end:
            instance.unseen_end = False
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
        """Opens the control volume, fencing an older control plane, and takes over the newest state in it that is whole
        (or the one of version `choice`; `rebuilt` if none is). Raises ConfigurationError, QuorumLostError, what is in
        store.py."""
        with self._own_volume():
            store, loaded = await ControlStore.open(
                self.fleet.control_volume,
                self.addresses(),
                timeout_s=OPEN_CONTROL_TIMEOUT_S,
                on_fenced=self._fenced.set,
                choice=choice,
                even_damaged=rebuilt is not None,
            )
        try:
            loaded = loaded or rebuilt
            _check_loaded(self.fleet, loaded)
            async with self._saving:
                fleet = self.fleet if loaded is None else merge(self.fleet, loaded)
                if fleet != loaded or store.damaged or choice is not None or rebuilt is not None:
                    fleet = replace(fleet, revision=fleet.revision + 1)
                    with self._own_volume():
                        await store.save(fleet)
                self.fleet, self._store = fleet, store
        finally:
            if self._store is not store:
                await store.close()
        self._note_fleet()
        self.failovers.take_over()
        for version in store.damaged:
            self.say(_passed_over(version))
            self.events.note(EventKind.STATE, "control", _passed_over(version))
        opened = f"the control state is open in epoch {store.epoch}, revision {fleet.revision}"
        self.say(opened)
        self.events.note(EventKind.FLEET, "control", opened)

    async def commit(self, change: Callable[[Fleet], Fleet]) -> Fleet:
        """Changes the declared state: durable first, then in force. Raises SupersededError, QuorumLostError."""
        async with self._saving:
            changed = change(self.fleet)
            if changed == self.fleet:
                return changed
            if self._store is not None:
                changed = replace(changed, revision=self.fleet.revision + 1)
                with self._own_volume():
                    await self._store.save(changed)
                # It is durable, whatever becomes of the file: the next change must build on it.
                self.fleet = changed
                self._note_fleet()
            else:
                bootstrap.save(self.config.data_dir, changed)
                self.fleet = changed
        self.notify()
        return changed

    def _note_fleet(self) -> None:
        """Has the bootstrap file follow. If it cannot be written, the next cycle tries again: its content is not needed
        while we run, and a control plane that starts with an older one finds its way from there."""
        try:
            bootstrap.save(self.config.data_dir, self.fleet)
            self._file_problem = ""
        except ConfigurationError as error:
            if self._file_problem != str(error):
                self._file_problem = str(error)
                self.say(str(error))

    @contextmanager
    def _own_volume(self) -> Iterator[None]:
        """Who is fenced in here is this control plane itself."""
        try:
            yield
        except FencedError as error:
            self._fenced.set()
            raise SupersededError(str(error)) from error

    # ---- the end

    async def shutdown(self, *, destroy: bool = False) -> None:
        """Stops everything in order: endpoints, engines, control state, storage nodes. What is declared stays so."""
        self._stopping = True
        self._wake.set()
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
        if self._store is not None:
            await _all([self._store.close()])
        await processes.clients.close()
        nodes, processes.nodes = processes.nodes, {}
        await _all(n.process.stop(destroy=destroy, timeout_s=END_TIMEOUT_S) for n in nodes.values())


def _passed_over(version: Version) -> str:
    return (
        f"version {version.number} of the control state cannot be used ({version.problem}) and the one before it is in "
        "force: what was declared in between is forgotten; `aurora repair state` shows all versions"
    )


def _check_loaded(local: Fleet, loaded: Fleet | None) -> None:
    """Raises ConfigurationError if the state cannot be that of the fleet's file: then nobody may go on from it."""
    if loaded is None and local.revision > 0:
        raise ConfigurationError(
            "the control volume is empty, though a state was saved in it: nothing is made in its place; bring back the "
            "storage nodes' data, or see `aurora repair state`"
        )
    if loaded is not None and local.fleet_id not in (loaded.fleet_id, bootstrap.UNKNOWN_FLEET):
        raise ConfigurationError(
            f"{bootstrap.FILE_NAME} is that of fleet {local.fleet_id}, the control volume that of {loaded.fleet_id}: "
            "restore the right file, or have it made anew with `aurora repair fleet`"
        )


def merge(local: Fleet, loaded: Fleet) -> Fleet:
    """The saved state, with what was learnt about nodes while it was not open yet."""
    hosts = {node.node_id: node.host for node in local.nodes}
    nodes = tuple(replace(node, host=hosts.get(node.node_id) or node.host) for node in loaded.nodes)
    groups = []
    for mine, saved in zip(local.control_volume.groups, loaded.control_volume.groups, strict=True):
        learnt = tuple(n for n in mine.created_on if n in saved.node_ids and n not in saved.created_on)
        groups.append(replace(saved, created_on=(*saved.created_on, *learnt)))
    return replace(loaded, nodes=nodes, control_volume=replace(loaded.control_volume, groups=tuple(groups)))


async def _all(steps: Iterable[Awaitable[None]]) -> None:
    """Does all steps at once; one that fails is logged and holds up no other."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, Exception):
            _log.warning("while stopping: %s", result)
