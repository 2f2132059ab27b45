"""The endpoints of a fleet: which there shall be, where each leads, and the process that has them.

Each cluster has two. The cluster endpoint leads to the writer; the reader endpoint to the readers, to the writer while
there are none. Users add custom ones, which lead to whom they name and to nobody else. An instance that is not
available is not led to: its sessions are cut and new connections are held until someone is available in its place. So
a demoted or dead writer loses its sessions as soon as it is seen to be one.

`Endpoints` looks at what is, as `reconcile` does, and what it wants done becomes actions of the same kind. The process
is told everything anew whenever anything changes, in the control volume's epoch: one that was told by a later control
plane refuses, and this one then knows that it was replaced.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.decide.serverless import EndpointUse
from aurora_ray.control.model import addresses
from aurora_ray.control.model.custom_endpoints import CLUSTER, READER, CustomEndpoint
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.runtime import ProcessGoneError, SupersededError
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet
from aurora_ray.endpoint.host import EndpointOrder, EndpointState
from aurora_ray.endpoint.relay import ClientProtocol, Target
from aurora_ray.engine.registry import adapter
from aurora_ray.errors import FencedError

if TYPE_CHECKING:
    from aurora_ray.control.model.endpoint_runtime import EndpointProcess, EndpointRuntime
    from aurora_ray.control.model.runtime import ControlConfig
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.observe.processes import Tasks

APPLY_TIMEOUT_S: Final = 15.0
MOVE_AFTER_S: Final = 5.0  # whoever has an endpoint's port may be about to let go of it
PROBLEM_RETRY_S: Final = 2.0
HELD_AGAIN_S: Final = 0.5
DRIVERS: Final = "driver"  # what the endpoints' names begin with that are for drivers
WAKE_HOLD_S: Final = 120.0  # a resume needs a second, and as long as a machine needs that has no room or no CPU
INSTANCE_HOLD_S: Final = 1.0  # whoever asks for an instance by name can ask for another one


@dataclass(frozen=True, slots=True)
class StartEndpoints(Action):
    """Start the process that has the endpoints."""

    kind: ClassVar = Kind.ENDPOINTS


@dataclass(frozen=True, slots=True)
class PointEndpoints(Action):
    """Tell it which endpoints there are and where they lead."""

    kind: ClassVar = Kind.ENDPOINTS
    orders: tuple[EndpointOrder, ...]


@dataclass(frozen=True, slots=True)
class MoveEndpoint(Action):
    """Declare another port for an endpoint that cannot have its own."""

    kind: ClassVar = Kind.MOVE_ENDPOINT
    of: ClassVar = ("cluster", "endpoint")
    cluster: str
    endpoint: str


def endpoint_name(cluster: str, endpoint: str) -> str:
    """The name by which the process knows an endpoint of a cluster."""
    return f"{cluster}/{endpoint}"


def cluster_of(endpoint: str) -> str:
    """The cluster of an endpoint, by the name that the process knows."""
    return endpoint.partition("/")[0]


def cluster_endpoint(cluster: str) -> str:
    """The name of the endpoint that follows the writer."""
    return endpoint_name(cluster, CLUSTER)


def reader_endpoint(cluster: str) -> str:
    """The name of the endpoint that spreads over the readers."""
    return endpoint_name(cluster, READER)


def address_of(listen_host: str, machine: str) -> str:
    """Where something that listens on `listen_host` of `machine` is reached, as a numeric address."""
    try:
        return machine if ipaddress.ip_address(listen_host).is_unspecified else listen_host
    except ValueError:
        return machine


def orders_for(
    fleet: Fleet, instances: Mapping[str, Instance], listen_host: str, machine: str, *, in_place: bool = False
) -> tuple[EndpointOrder, ...]:
    """What there shall be now; `machine` has the endpoints. A cluster that is being deleted has none any more.
    `in_place`: who is to be the writer, and still serves as a reader, keeps its sessions until it is that."""
    orders: list[EndpointOrder] = []
    for cluster in fleet.clusters:
        if cluster.phase is ClusterPhase.DELETING:
            continue
        targets = partial(_targets, cluster, instances=instances, listen_host=listen_host, machine=machine)
        writers, readers = targets(Role.WRITER), targets(Role.READER)
        leaving = targets(Role.READER, leaving=True)
        becoming = _becoming(cluster, instances, listen_host, machine) if in_place else ()
        engine = adapter(cluster.engine)
        protocol = ClientProtocol(engine.cancel_code, engine.refusal, engine.keeps_address)
        name = cluster_endpoint(cluster.name)
        waking_s = WAKE_HOLD_S if cluster.capacity is not None and cluster.capacity.pauses else None
        # In a secondary region nobody is waited for: who asks both regions for the writer goes on to the other one.
        hold_s = INSTANCE_HOLD_S if cluster.is_secondary else waking_s
        orders.append(EndpointOrder(name, listen_host, cluster.port, writers, protocol=protocol, hold_s=hold_s))
        if cluster.reader_port:
            # Who came to be led to a reader is not left with a writer, where another reader is.
            stay = () if readers else becoming
            name, fallback = reader_endpoint(cluster.name), (*leaving, *stay, *writers)
            orders.append(EndpointOrder(name, listen_host, cluster.reader_port, readers, fallback, protocol, waking_s))
        for custom in cluster.custom_endpoints:
            chosen = (*targets(Role.READER, among=custom), *targets(Role.WRITER, among=custom))
            leads = custom.leads_to(cluster.writer().instance_id, Role.READER)
            drained = (*targets(Role.READER, among=custom, leaving=True), *(becoming if leads else ()))
            name = endpoint_name(cluster.name, custom.name)
            orders.append(EndpointOrder(name, listen_host, custom.port, chosen, drained, protocol, waking_s))
    return tuple(orders)


def driver_orders(
    fleet: Fleet, instances: Mapping[str, Instance], listen_host: str, machine: str, *, in_place: bool = False
) -> tuple[EndpointOrder, ...]:
    """One more address for each cluster's two endpoints, and one for each instance, all at the cluster's port (see
    model/addresses.py). At its own, an instance is led to whatever it serves as; nobody waits there for long."""
    orders: list[EndpointOrder] = []
    if not addresses.are_there(listen_host):
        return ()
    known = {order.name: order for order in orders_for(fleet, instances, listen_host, machine, in_place=in_place)}
    for cluster in fleet.clusters:
        main, reading = known.get(cluster_endpoint(cluster.name)), known.get(reader_endpoint(cluster.name))
        if main is None:
            continue
        like = [(CLUSTER, cluster.port, main), *([(READER, cluster.reader_port, reading)] if reading else [])]
        for instance in (each for each in cluster.instances if each.role.traits.addressed):
            there = _target(cluster, instance, instances, listen_host, machine)
            if there is None and in_place and instance is cluster.writer():
                there = next(iter(_becoming(cluster, instances, listen_host, machine)), None)
            # Whoever wakes a paused cluster waits for it, at whatever address.
            alone = replace(main, targets=(there,) if there else (), hold_s=main.hold_s or INSTANCE_HOLD_S)
            like.append((instance.instance_id, instance.port, alone))
        for name, own_port, order in like:
            where, name_ = addresses.own_address(own_port), endpoint_name(cluster.name, f"{DRIVERS}/{name}")
            orders.append(replace(order, name=name_, host=where, port=cluster.port))
    return tuple(orders)


def _targets(
    cluster: DBCluster,
    role: Role,
    *,
    instances: Mapping[str, Instance],
    listen_host: str,
    machine: str,
    leaving: bool = False,
    among: CustomEndpoint | None = None,
) -> tuple[Target, ...]:
    """`among`: those that a custom endpoint has. `leaving`: those that are drained. They keep their sessions as they
    are listed, and get no new ones from an endpoint that lists others before them."""
    targets = []
    for declared in cluster.instances:
        if declared.role is not role or leaving is not (declared.leaving_since_s > 0):
            continue
        if among is not None and not among.leads_to(declared.instance_id, role):
            continue
        if (target := _target(cluster, declared, instances, listen_host, machine)) is not None:
            targets.append(target)
    return tuple(targets)


def _becoming(
    cluster: DBCluster, instances: Mapping[str, Instance], listen_host: str, machine: str
) -> tuple[Target, ...]:
    """Who is to be the writer, and serves as a reader until it is, or its incarnation ends."""
    writer = cluster.writer()
    if not writer.role.traits.writes:
        return ()
    target = _target(cluster, writer, instances, listen_host, machine, role=Role.READER)
    return () if target is None else (target,)


def _target(
    cluster: DBCluster,
    declared: DBInstance,
    instances: Mapping[str, Instance],
    listen_host: str,
    machine: str,
    *,
    role: Role | None = None,
) -> Target | None:
    instance = instances.get(declared.instance_id)
    # Roles are declared before they are changed: whoever still is what it was gets nobody, and loses whom it has.
    if cluster.paused_since_s or instance is None or not instance.seen.serves(role or cluster.served_as(declared)):
        return None
    status = instance.status
    # The same port after a restart is not the same engine; sessions of the earlier one must not live on. A reader
    # that becomes the writer in place is the same: an endpoint that leads to it in either role keeps its sessions.
    incarnation = f"{cluster.volume.volume_id}:{status.pid}" if status is not None else ""
    # Its own socket is for who is on its machine; from elsewhere, bytes are relayed.
    hand_over = status.hand_over if status is not None and instance.process.host == machine else ""
    return Target(address_of(listen_host, instance.process.host), declared.port, incarnation, hand_over)


class Endpoints:
    """Belongs to the control plane's event loop. Without a runtime there are no endpoints and nothing is wanted."""

    def __init__(
        self,
        runtime: EndpointRuntime | None,
        config: ControlConfig,
        *,
        tasks: Tasks,
        say: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._tasks = tasks
        self._say = say
        self._on_change = on_change
        self._process: EndpointProcess | None = None
        self._told: tuple[EndpointOrder, ...] | None = None
        self._problems: dict[str, str] = {}
        # Endpoints and the port that somebody else has: once another is declared, that one says nothing about it.
        self._taken_since_s: dict[tuple[str, int], float] = {}
        self._told_at_s = 0.0
        self._telling = asyncio.Lock()
        self._withdrawn: frozenset[str] = frozenset()  # clusters whose pause is being declared
        self._watched: frozenset[str] = frozenset()  # paused clusters whose endpoints are watched, and ...
        self._watching: asyncio.Task[None] | None = None
        self.held: frozenset[str] = frozenset()  # ... those of them at which somebody waits, and ...
        self.held_since_ns: dict[str, int] = {}  # ... since when that is known (Unix times in ns)

    # ---- what it knows

    @property
    def exist(self) -> bool:
        """Whether there are endpoints at all."""
        return self._runtime is not None

    def problem(self, cluster: DBCluster) -> str:
        """Why an endpoint of the cluster cannot be had at the port that it has now, e.g. that one is in use; empty if
        nothing is known of that."""
        told = {(order.name, order.port) for order in self._told or ()}
        now = [name for _, name, port in _endpoints_of(cluster) if (name, port) in told]
        return next((self._problems[name] for name in now if name in self._problems), "")

    def told(self, name: str) -> bool:
        """Whether the process was told last that there is that endpoint."""
        return any(order.name == name for order in self._told or ())

    def listens(self, name: str, port: int) -> bool:
        """Whether the endpoint is there, on that port; where there are no endpoints, nobody waits for one."""
        if self._runtime is None:
            return True
        return name not in self._problems and any((o.name, o.port) == (name, port) for o in self._told or ())

    def serves(self, cluster: DBCluster) -> bool:
        """Whether the cluster endpoint leads to a writer."""
        if self._runtime is None:
            return True
        name = cluster_endpoint(cluster.name)
        return name not in self._problems and any(o.name == name and o.targets for o in self._told or ())

    def address(self, cluster: DBCluster, endpoint: str, instances: Mapping[str, Instance]) -> tuple[str, int]:
        """The stable host and port of an endpoint; the writer's own where there are no endpoints."""
        writer = cluster.writer()
        if self._runtime is None:
            instance = instances.get(writer.instance_id)
            machine, port = (instance.process.host if instance is not None else "127.0.0.1"), writer.port
        else:
            machine = self._process.host if self._process is not None else "127.0.0.1"
            port = cluster.endpoint_ports()[endpoint] or cluster.port
        return address_of(self._config.listen_host, machine), port

    async def states(self, timeout_s: float) -> dict[str, EndpointState]:
        """Counters by the endpoint's name; empty when the process does not answer."""
        if self._process is None:
            return {}
        try:
            return {state.name: state for state in await self._process.states(timeout_s)}
        except (ProcessGoneError, TimeoutError):
            return {}

    async def use(self, timeout_s: float) -> dict[str, EndpointUse]:
        """How much each cluster's endpoints are used, all together; empty when the process does not answer."""
        found: dict[str, EndpointUse] = {}
        for name, state in (await self.states(timeout_s)).items():
            before, stats = found.get(cluster_of(name), EndpointUse()), state.stats
            found[cluster_of(name)] = EndpointUse(
                before.open + stats.open, before.held + stats.held, before.accepted + stats.accepted
            )
        return found

    # ---- what it wants

    def wanted(
        self, fleet: Fleet, instances: Mapping[str, Instance], *, control_open: bool, now_s: float
    ) -> Iterator[Action | str]:
        """Actions and notes, as in `reconcile`. Nothing is told, so nothing cut, before the declared state is known."""
        if self._runtime is None:
            return
        if self._process is None:
            yield StartEndpoints("no process has the endpoints")
            return
        for name, problem in self._problems.items():
            yield f"endpoint {name} is not there: {problem}"
        if not control_open:
            return
        at = (self._config.listen_host, self._process.host)
        in_place = self._config.promote_in_place
        orders = tuple(
            o for make in (orders_for, driver_orders) for o in make(fleet, instances, *at, in_place=in_place)
        )
        orders = self._without(orders)
        self._watch_held({cluster.name for cluster in fleet.clusters if cluster.paused_since_s})
        yield from self._moves(fleet, now_s)
        if orders != self._told:
            yield PointEndpoints(_what_changes(self._told or (), orders), orders)
        elif self._problems and now_s - self._told_at_s >= PROBLEM_RETRY_S:
            yield PointEndpoints(f"{', '.join(self._problems)} could not be had before", orders)

    def taken(self, cluster: DBCluster) -> bool:
        """Whether an endpoint of the cluster waits for its port, or for another one."""
        return any((name, port) in self._taken_since_s for _, name, port in _endpoints_of(cluster))

    def _moves(self, fleet: Fleet, now_s: float) -> Iterator[Action]:
        for cluster in fleet.clusters:
            for endpoint, name, port in _endpoints_of(cluster):
                if now_s - self._taken_since_s.get((name, port), now_s) >= MOVE_AFTER_S:
                    why = f"endpoint {name} cannot have its port: {self._problems.get(name, '')}"
                    yield MoveEndpoint(why, cluster.name, endpoint)

    # ---- what it does

    async def adopt(self) -> None:
        """Takes over the process that an earlier control plane started."""
        process = await self._runtime.find() if self._runtime is not None else None
        if process is not None:
            self._take(process)

    async def perform(self, action: StartEndpoints | PointEndpoints, generation: int, now_s: float) -> None:
        """Carries it out. Raises SupersededError when a later control plane has told the process something else."""
        if isinstance(action, StartEndpoints):
            if self._runtime is not None:
                self._take(await self._runtime.start(self._config))
            return
        process = self._process
        if process is None:
            raise ProcessGoneError("the endpoints' process ended meanwhile")
        try:
            async with self._telling:
                if any(order.targets and cluster_of(order.name) in self._withdrawn for order in action.orders):
                    return  # it is paused meanwhile: the next cycle knows
                states = await self._apply(process, action.orders, generation)
        except TimeoutError:
            await process.end()  # stuck, and with it every session
            raise ProcessGoneError(f"the endpoints' process did not answer in {APPLY_TIMEOUT_S:g} s") from None
        except FencedError as error:
            raise SupersededError(str(error)) from error
        self._told, self._told_at_s = action.orders, now_s
        self._problems = {state.name: state.problem for state in states if state.problem}
        names = {state.name for state in states if state.port_taken}
        taken = [(order.name, order.port) for order in action.orders if order.name in names]
        self._taken_since_s = {each: self._taken_since_s.get(each, now_s) for each in taken}

    async def _apply(
        self, process: EndpointProcess, orders: tuple[EndpointOrder, ...], generation: int
    ) -> Sequence[EndpointState]:
        try:
            return await process.apply(orders, generation, APPLY_TIMEOUT_S)
        except BaseException:
            self._told = None  # it may have heard of it all the same
            raise

    @asynccontextmanager
    async def withdrawn(self, cluster: DBCluster, generation: int) -> AsyncIterator[bool]:
        """While it lasts the cluster's endpoints lead nowhere and whoever comes is held, unless any of them is in use:
        whether it is so. Afterwards they lead where what is declared then says. Raises what `perform` does."""
        process = self._process
        if process is None:
            raise ProcessGoneError("no process has the endpoints")
        self._withdrawn |= {cluster.name}
        try:
            async with self._telling:
                told, self._told = self._told or (), None
                names = [order.name for order in told if cluster_of(order.name) == cluster.name]
                used = not names or bool(await process.withdraw(names, generation, APPLY_TIMEOUT_S))
                if not used:
                    self._told = self._without(told)
            yield not used
        except FencedError as error:
            raise SupersededError(str(error)) from error
        finally:
            self._withdrawn -= {cluster.name}

    def _without(self, orders: Sequence[EndpointOrder]) -> tuple[EndpointOrder, ...]:
        """With nobody to lead to at the endpoints that are withdrawn."""
        return tuple(
            replace(order, targets=(), fallback=()) if cluster_of(order.name) in self._withdrawn else order
            for order in orders
        )

    def _watch_held(self, paused: set[str]) -> None:
        """Has whoever comes to a paused cluster noticed at once."""
        if self._watched == paused and (not paused or (self._watching is not None and not self._watching.done())):
            return
        self._watched, self.held = frozenset(paused), self.held & paused
        self.held_since_ns = {name: since for name, since in self.held_since_ns.items() if name in paused}
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if paused and self._process is not None and self._told is not None:
            names = [order.name for order in self._told if cluster_of(order.name) in paused]
            self._watching = self._tasks.start(self._wait_held(self._process, names), "watch who is held")

    async def _wait_held(self, process: EndpointProcess, names: Sequence[str]) -> None:
        try:
            held = await process.wait_held(names)
        except ProcessGoneError:
            return  # that is watched as well
        self.held = frozenset(map(cluster_of, held)) & self._watched
        self.held_since_ns = {name: self.held_since_ns.get(name, time.time_ns()) for name in self.held}
        self._on_change()
        await asyncio.sleep(HELD_AGAIN_S)  # what is held stays so until it is served

    async def end(self) -> None:
        """Ends the process, and with it every session."""
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    def _take(self, process: EndpointProcess) -> None:
        self._process, self._told, self._problems, self._taken_since_s = process, None, {}, {}
        self._tasks.watch(lambda: self._watch(process), "watch endpoints")

    async def _watch(self, process: EndpointProcess) -> None:
        why = await process.wait_gone()
        if self._process is process:
            self._process, self._told, self._problems, self._taken_since_s = None, None, {}, {}
            self._say(f"the endpoints' process ended: {why}")
            self._on_change()


def _endpoints_of(cluster: DBCluster) -> tuple[tuple[str, str, int], ...]:
    ports = cluster.endpoint_ports()
    return tuple((endpoint, endpoint_name(cluster.name, endpoint), port) for endpoint, port in ports.items())


def _what_changes(before: Sequence[EndpointOrder], after: Sequence[EndpointOrder]) -> str:
    known = {order.name: order for order in before}
    changes = [_leads(order) for order in after if known.get(order.name) != order]
    changes += [f"{name} goes" for name in known if name not in {order.name for order in after}]
    return "; ".join(changes) or "it was not told yet that there are none"


def _leads(order: EndpointOrder) -> str:
    targets = order.targets or order.fallback
    where = ", ".join(f"{target.host}:{target.port}" for target in targets) or "nowhere for now"
    return f"{order.name} leads to {where}"
