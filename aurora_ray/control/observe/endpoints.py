"""The endpoints of a fleet: which there shall be, where each leads, and the process that has them.

Each cluster has two. The cluster endpoint leads to the writer; the reader endpoint to the readers, to the writer while
there are none. An instance that is not available is not led to: its sessions are cut and new connections are held until
someone is available in its place. So a demoted or dead writer loses its sessions as soon as it is seen to be one.

`Endpoints` looks at what is, as `reconcile` does, and what it wants done becomes actions of the same kind. The process
is told everything anew whenever anything changes, in the control volume's epoch: one that was told by a later control
plane refuses, and this one then knows that it was replaced.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.runtime import ProcessGoneError, SupersededError
from aurora_ray.control.model.state import ClusterPhase, DBCluster, Fleet
from aurora_ray.endpoint.host import EndpointOrder, EndpointState
from aurora_ray.endpoint.relay import Target
from aurora_ray.errors import FencedError

if TYPE_CHECKING:
    from aurora_ray.control.model.runtime import ControlConfig
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.observe.processes import Tasks

APPLY_TIMEOUT_S: Final = 15.0
MOVE_AFTER_S: Final = 5.0  # whoever has an endpoint's port may be about to let go of it
PROBLEM_RETRY_S: Final = 2.0


class EndpointProcess(Protocol):
    """The process that has the endpoints. Calls raise ProcessGoneError when it has ended."""

    @property
    def host(self) -> str:
        """The machine that it runs on."""

    async def wait_gone(self) -> str:
        """Waits, without a limit, until the process has ended; why."""

    async def apply(
        self, orders: Sequence[EndpointOrder], generation: int, timeout_s: float
    ) -> Sequence[EndpointState]:
        """See EndpointHost.apply."""

    async def states(self, timeout_s: float) -> Sequence[EndpointState]:
        """See EndpointHost.states."""

    async def end(self) -> None:
        """Ends it at once."""


class EndpointRuntime(Protocol):
    """Starts and finds that process."""

    async def start(self, config: ControlConfig) -> EndpointProcess:
        """Starts it and waits until it answers."""

    async def find(self) -> EndpointProcess | None:
        """The one that an earlier control plane started, if it still runs."""


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
    of: ClassVar = ("cluster", "role")
    cluster: str
    role: Role


def cluster_endpoint(cluster: str) -> str:
    """The name of the endpoint that follows the writer."""
    return f"{cluster}/cluster"


def reader_endpoint(cluster: str) -> str:
    """The name of the endpoint that spreads over the readers."""
    return f"{cluster}/reader"


def address_of(listen_host: str, machine: str) -> str:
    """Where something that listens on `listen_host` of `machine` is reached, as a numeric address."""
    try:
        return machine if ipaddress.ip_address(listen_host).is_unspecified else listen_host
    except ValueError:
        return machine


def orders_for(fleet: Fleet, instances: Mapping[str, Instance], listen_host: str) -> tuple[EndpointOrder, ...]:
    """What there shall be now. A cluster that is being deleted has no endpoints any more."""
    orders: list[EndpointOrder] = []
    for cluster in fleet.clusters:
        if cluster.phase is ClusterPhase.DELETING:
            continue
        writers = _targets(cluster, Role.WRITER, instances, listen_host)
        readers = _targets(cluster, Role.READER, instances, listen_host)
        orders.append(EndpointOrder(cluster_endpoint(cluster.name), listen_host, cluster.port, writers))
        if cluster.reader_port:
            name = reader_endpoint(cluster.name)
            orders.append(EndpointOrder(name, listen_host, cluster.reader_port, readers, fallback=writers))
    return tuple(orders)


def _targets(cluster: DBCluster, role: Role, instances: Mapping[str, Instance], listen_host: str) -> tuple[Target, ...]:
    targets = []
    for declared in cluster.instances:
        instance = instances.get(declared.instance_id)
        if declared.role is not role or instance is None or instance.seen.phase is not InstancePhase.AVAILABLE:
            continue
        status = instance.status
        # The same port after a restart is not the same engine; sessions of the earlier one must not live on.
        incarnation = f"{cluster.volume.volume_id}:{status.epoch}:{status.pid}" if status is not None else ""
        targets.append(Target(address_of(listen_host, instance.process.host), declared.port, incarnation))
    return tuple(targets)


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

    def serves(self, cluster: DBCluster) -> bool:
        """Whether the cluster endpoint leads to a writer."""
        if self._runtime is None:
            return True
        name = cluster_endpoint(cluster.name)
        return name not in self._problems and any(o.name == name and o.targets for o in self._told or ())

    def address(self, cluster: DBCluster, role: Role, instances: Mapping[str, Instance]) -> tuple[str, int]:
        """The stable host and port for a role; the writer's own where there are no endpoints."""
        writer = cluster.writer()
        if self._runtime is None:
            instance = instances.get(writer.instance_id)
            machine, port = (instance.process.host if instance is not None else "127.0.0.1"), writer.port
        else:
            machine = self._process.host if self._process is not None else "127.0.0.1"
            port = cluster.reader_port if role is Role.READER and cluster.reader_port else cluster.port
        return address_of(self._config.listen_host, machine), port

    async def states(self, timeout_s: float) -> dict[str, EndpointState]:
        """Counters by the endpoint's name; empty when the process does not answer."""
        if self._process is None:
            return {}
        try:
            return {state.name: state for state in await self._process.states(timeout_s)}
        except (ProcessGoneError, TimeoutError):
            return {}

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
        orders = orders_for(fleet, instances, self._config.listen_host)
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
            for role, name, port in _endpoints_of(cluster):
                if now_s - self._taken_since_s.get((name, port), now_s) >= MOVE_AFTER_S:
                    why = f"endpoint {name} cannot have its port: {self._problems.get(name, '')}"
                    yield MoveEndpoint(why, cluster.name, role)

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
            states = await process.apply(action.orders, generation, APPLY_TIMEOUT_S)
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


def _endpoints_of(cluster: DBCluster) -> tuple[tuple[Role, str, int], ...]:
    return (
        (Role.WRITER, cluster_endpoint(cluster.name), cluster.port),
        (Role.READER, reader_endpoint(cluster.name), cluster.reader_port),
    )


def _what_changes(before: Sequence[EndpointOrder], after: Sequence[EndpointOrder]) -> str:
    known = {order.name: order for order in before}
    changes = [_leads(order) for order in after if known.get(order.name) != order]
    changes += [f"{name} goes" for name in known if name not in {order.name for order in after}]
    return "; ".join(changes) or "it was not told yet that there are none"


def _leads(order: EndpointOrder) -> str:
    targets = order.targets or order.fallback
    where = ", ".join(f"{target.host}:{target.port}" for target in targets) or "nowhere for now"
    return f"{order.name} leads to {where}"
