"""Endpoints follow the roles, through the death of what is behind them, of their process and of the control plane."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.custom_endpoints import CustomEndpoint, CustomKind, with_endpoint
from aurora_ray.control.model.runtime import ControlConfig, ProcessGoneError
from aurora_ray.control.model.state import ClusterPhase, DBInstance, Fleet
from aurora_ray.control.observe.endpoints import (
    INSTANCE_HOLD_S,
    MOVE_AFTER_S,
    WAKE_HOLD_S,
    Endpoints,
    MoveEndpoint,
    PointEndpoints,
    StartEndpoints,
    address_of,
    driver_orders,
    orders_for,
)
from aurora_ray.control.observe.known import Instance
from aurora_ray.control.observe.processes import Tasks
from aurora_ray.control.perform.regions import with_owner
from aurora_ray.control.report.status import report_endpoints
from aurora_ray.endpoint.host import EndpointHost, EndpointOrder, EndpointState
from aurora_ray.errors import FencedError, UsageError
from tests.control.fleets import AZS, running_fleet
from tests.endpoint.backends import Backend, backend, client
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator

CONFIG = ControlConfig(Path("unused"), "somewhere", AZS, 1 << 30, 1 << 30, 300.0, 1 << 28)


class HostProcess:
    """Stands for the process: an EndpointHost that can die."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.inner = EndpointHost()
        self.gone = asyncio.Event()

    async def wait_gone(self) -> str:
        await self.gone.wait()
        return "it was killed"

    async def apply(
        self, orders: Sequence[EndpointOrder], generation: int, timeout_s: float
    ) -> Sequence[EndpointState]:
        if self.gone.is_set():
            raise ProcessGoneError("its process died")
        return await asyncio.to_thread(self.inner.apply, orders, generation)

    async def states(self, timeout_s: float) -> Sequence[EndpointState]:
        return self.inner.states()

    async def end(self) -> None:
        self.inner.close()
        self.gone.set()


class HostRuntime:
    def __init__(self) -> None:
        self.process: HostProcess | None = None
        self.starts = 0

    async def start(self, config: ControlConfig) -> HostProcess:
        self.starts += 1
        self.process = HostProcess()
        return self.process

    async def find(self) -> HostProcess | None:
        return self.process if self.process is not None and not self.process.gone.is_set() else None


class World:
    """A fleet with one cluster, its instances as backends, and the endpoints' part of a control plane."""

    def __init__(self, ports: PortAllocator) -> None:
        cluster = replace(running_fleet().cluster("demo"), port=ports.allocate(), reader_port=ports.allocate())
        self.fleet: Fleet = running_fleet().with_cluster(replace(cluster, instances=()))
        self.ports = ports
        self.instances: dict[str, Instance] = {}
        self.runtime = HostRuntime()
        self.tasks = Tasks()
        self.said: list[str] = []
        self.plane = self.new_plane()
        self.epoch = 1
        self.now_s = 0.0

    @property
    def cluster_port(self) -> int:
        return self.fleet.cluster("demo").port

    @property
    def reader_port(self) -> int:
        return self.fleet.cluster("demo").reader_port

    def new_plane(self) -> Endpoints:
        return Endpoints(self.runtime, CONFIG, tasks=self.tasks, say=self.said.append, on_change=lambda: None)

    def declare(self, role: Role, target: Backend) -> None:
        cluster = self.fleet.cluster("demo")
        others = tuple(i for i in cluster.instances if i.instance_id != target.name)
        declared = DBInstance(target.name, role, "a", target.address[1])
        self.fleet = self.fleet.with_cluster(replace(cluster, instances=(*others, declared)))

    def available(self, name: str, epoch: int) -> None:
        """Its engine accepts statements, in the role that is declared now."""
        declared = self.fleet.cluster("demo").instances
        role = next(one.role for one in declared if one.instance_id == name)
        status = InstanceStatus(IncarnationPhase.AVAILABLE, epoch=epoch, pid=epoch * 100, role=role)
        process: Any = HostProcess()  # only its host is looked at
        self.instances[name] = Instance(process)
        self.instances[name].became_available(status, 0.0)

    def ended(self, name: str) -> None:
        self.instances[name].ended("it was killed")

    def wanted(self, *, control_open: bool = True) -> list[Action | str]:
        return list(self.plane.wanted(self.fleet, self.instances, control_open=control_open, now_s=self.now_s))

    async def settle(self) -> int:
        """Carries out what is wanted until nothing more is; how many actions that took."""
        count = 0
        while actions := [action for action in self.wanted() if isinstance(action, StartEndpoints | PointEndpoints)]:
            for action in actions:
                await self.plane.perform(action, self.epoch, self.now_s)
                count += 1
            assert count < 10
        return count


@pytest.fixture
async def world(ports: PortAllocator) -> AsyncIterator[World]:
    made = World(ports)
    yield made
    if made.runtime.process is not None:
        await made.runtime.process.end()
    await made.tasks.cancel()


async def test_a_failover_moves_the_cluster_endpoint_and_cuts_the_demoted_writers_sessions(world: World) -> None:
    async with backend("demo-1") as one, backend("demo-2") as two:
        world.declare(Role.WRITER, one)
        world.declare(Role.READER, two)
        world.available("demo-1", epoch=3)
        world.available("demo-2", epoch=3)
        assert await world.settle() == 2
        assert world.plane.serves(world.fleet.cluster("demo"))
        async with client(world.cluster_port) as writing, client(world.reader_port) as reading:
            assert (await writing.greeting(), await reading.greeting()) == ("demo-1", "demo-2")

            world.ended("demo-1")
            await world.settle()
            assert not world.plane.serves(world.fleet.cluster("demo"))
            with pytest.raises(ConnectionResetError):
                await writing.read_to_end()
            assert await reading.echo(b"reads go on") == b"reads go on"

            async with client(world.cluster_port) as early:
                world.declare(Role.READER, one)
                world.declare(Role.WRITER, two)
                await world.settle()
                with pytest.raises(ConnectionResetError):
                    await reading.read_to_end()  # it is a reader no more, and not yet a writer
                world.available("demo-2", epoch=4)
                await world.settle()
                assert await early.greeting() == "demo-2"
        assert await world.settle() == 0


async def test_a_new_incarnation_on_the_same_port_does_not_keep_old_sessions(world: World) -> None:
    async with backend("demo-1") as one:
        world.declare(Role.WRITER, one)
        world.available("demo-1", epoch=3)
        await world.settle()
        async with client(world.cluster_port) as session:
            assert await session.greeting() == "demo-1"
            world.available("demo-1", epoch=4)
            await world.settle()
            with pytest.raises(ConnectionResetError):
                await session.read_to_end()


async def test_readers_come_and_go_and_the_writer_fills_in(world: World) -> None:
    async with backend("demo-1") as one, backend("demo-2") as two, backend("demo-3") as three:
        world.declare(Role.WRITER, one)
        world.available("demo-1", epoch=1)
        await world.settle()
        async with client(world.reader_port) as first:
            assert await first.greeting() == "demo-1"
            for reader in (two, three):
                world.declare(Role.READER, reader)
                world.available(reader.name, epoch=1)
            await world.settle()
            names = set()
            for _ in range(4):
                async with client(world.reader_port) as session:
                    names.add(await session.greeting())
            assert names == {"demo-2", "demo-3"}
            assert await first.echo(b"kept") == b"kept"


async def test_a_dead_process_is_replaced_on_the_same_ports(world: World) -> None:
    async with backend("demo-1") as one:
        world.declare(Role.WRITER, one)
        world.available("demo-1", epoch=1)
        await world.settle()
        assert world.runtime.process is not None
        await world.runtime.process.end()
        await poll_until(lambda: "the endpoints' process ended: it was killed" in world.said)
        assert not world.plane.serves(world.fleet.cluster("demo"))
        assert await world.settle() == 2
        async with client(world.cluster_port) as session:
            assert await session.greeting() == "demo-1"


async def test_the_next_control_plane_cuts_nothing_and_fences_the_last(world: World) -> None:
    async with backend("demo-1") as one:
        world.declare(Role.WRITER, one)
        world.available("demo-1", epoch=1)
        await world.settle()
        async with client(world.cluster_port) as session:
            assert await session.greeting() == "demo-1"
            last, world.plane = world.plane, world.new_plane()
            await world.plane.adopt()
            assert world.wanted(control_open=False) == []
            world.epoch = 2
            assert await world.settle() == 1
            assert world.runtime.starts == 1
            assert await session.echo(b"kept") == b"kept"
            with pytest.raises(FencedError):
                await last.perform(PointEndpoints("it is late", ()), 1, 0.0)
            assert await session.echo(b"kept") == b"kept"


async def test_a_port_in_use_is_said_and_tried_again(world: World) -> None:
    async with backend("demo-1") as one:
        world.declare(Role.WRITER, one)
        world.available("demo-1", epoch=1)
        squatter = await asyncio.start_server(lambda *_: None, "127.0.0.1", world.cluster_port)
        async with squatter:
            await world.settle()
            cluster = world.fleet.cluster("demo")
            assert f"port {world.cluster_port} on 127.0.0.1 is in use" in world.plane.problem(cluster)
            assert not world.plane.serves(cluster)
            (note,) = world.wanted()
            assert str(note).startswith("endpoint demo/cluster is not there: port")
            async with client(world.reader_port) as session:
                assert await session.greeting() == "demo-1"
        world.now_s += 60.0
        assert await world.settle() == 1
        assert world.plane.problem(cluster) == ""
        assert world.plane.serves(cluster)


async def test_a_deleted_cluster_has_no_endpoints(world: World) -> None:
    async with backend("demo-1") as one:
        world.declare(Role.WRITER, one)
        world.available("demo-1", epoch=1)
        await world.settle()
        world.fleet = world.fleet.with_cluster(replace(world.fleet.cluster("demo"), phase=ClusterPhase.DELETING))
        assert await world.settle() == 1
        assert await world.plane.states(1.0) == {}


async def test_a_process_that_is_stuck_is_ended(world: World) -> None:
    await world.settle()
    process = world.runtime.process
    assert process is not None

    async def stuck(orders: Sequence[EndpointOrder], generation: int, timeout_s: float) -> Sequence[EndpointState]:
        raise TimeoutError

    process.apply = stuck  # type: ignore[method-assign]
    with pytest.raises(ProcessGoneError, match="did not answer"):
        await world.plane.perform(PointEndpoints("why", ()), 1, 0.0)
    assert process.gone.is_set()


async def test_without_a_runtime_the_writers_own_address_is_the_endpoint(world: World) -> None:
    plane = Endpoints(None, CONFIG, tasks=world.tasks, say=world.said.append, on_change=lambda: None)
    async with backend("demo-1") as one:
        world.declare(Role.WRITER, one)
        cluster = world.fleet.cluster("demo")
        assert list(plane.wanted(world.fleet, {}, control_open=True, now_s=0.0)) == []
        assert plane.serves(cluster)
        assert plane.address(cluster, "reader", {}) == ("127.0.0.1", one.address[1])
        assert world.plane.address(cluster, "reader", {}) == ("127.0.0.1", world.reader_port)


def test_addresses_are_numeric() -> None:
    assert address_of("127.0.0.1", "192.0.2.7") == "127.0.0.1"
    assert address_of("0.0.0.0", "192.0.2.7") == "192.0.2.7"  # noqa: S104
    assert address_of("::", "192.0.2.7") == "192.0.2.7"
    assert address_of("localhost", "192.0.2.7") == "192.0.2.7"


def test_a_cluster_without_available_instances_is_listened_for() -> None:
    fleet = running_fleet()
    (order,) = orders_for(fleet, {}, "127.0.0.1", "127.0.0.1")
    assert (order.name, order.targets, order.fallback) == ("demo/cluster", (), ())


def test_in_a_secondary_region_nobody_waits_for_a_writer() -> None:
    fleet = running_fleet()
    there = fleet.with_cluster(with_owner(fleet.cluster("demo"), Role.REPLICATOR))
    (here,), (order,) = (orders_for(each, {}, "127.0.0.1", "127.0.0.1") for each in (fleet, there))
    assert (here.hold_s, order.hold_s, order.targets) == (None, INSTANCE_HOLD_S, ())


def test_whoever_wakes_a_cluster_waits_for_it_at_every_endpoint() -> None:
    fleet = running_fleet()
    cluster = fleet.cluster("demo")
    for minimum, held_s in ((0.0, WAKE_HOLD_S), (0.5, None)):
        scaled = fleet.with_cluster(replace(cluster, reader_port=9, capacity=Capacity(min_acu=minimum, max_acu=2.0)))
        assert [each.hold_s for each in orders_for(scaled, {}, "127.0.0.1", "127.0.0.1")] == [held_s, held_s]


async def test_an_endpoint_whose_port_something_else_has_moves_after_a_while(world: World) -> None:
    with socket.create_server(("127.0.0.1", world.cluster_port)):
        await world.settle()
        assert world.plane.taken(world.fleet.cluster("demo"))
        assert not _moves(world), "it may be about to let go of it"
        world.now_s += MOVE_AFTER_S / 2
        await world.settle()
        world.now_s += MOVE_AFTER_S / 2
        (move,) = _moves(world)
        assert (move.cluster, move.endpoint) == ("demo", "cluster")
        elsewhere = world.fleet.cluster("demo").with_endpoint_port("cluster", world.ports.allocate())
        world.fleet = world.fleet.with_cluster(elsewhere)
        assert world.plane.problem(elsewhere) == "", "that was of the port which it had"
        assert not world.plane.serves(elsewhere)
        await world.settle()
    assert not _moves(world)
    assert not world.plane.taken(elsewhere)


def _moves(world: World) -> list[MoveEndpoint]:
    return [action for action in world.wanted() if isinstance(action, MoveEndpoint)]


def roles(*instances: tuple[str, Role]) -> Fleet:
    """A fleet whose cluster has instances on ports 1, 2, ..., each on a machine of its own but the first two."""
    declared = tuple(DBInstance(name, role, "a", port) for port, (name, role) in enumerate(instances, 1))
    return running_fleet().with_cluster(replace(running_fleet().cluster("demo"), reader_port=9, instances=declared))


def seen(fleet: Fleet, machines: dict[str, str]) -> dict[str, Instance]:
    found = {}
    for declared in fleet.cluster("demo").instances:
        process: Any = type("Process", (), {"host": machines.get(declared.instance_id, "127.0.0.1")})
        found[declared.instance_id] = Instance(process)
        status = InstanceStatus(
            IncarnationPhase.AVAILABLE, pid=declared.port, role=declared.role, hand_over=f"{declared.instance_id}.sock"
        )
        found[declared.instance_id].became_available(status, 0.0)
    return found


THREE = (("w", Role.WRITER), ("r1", Role.READER), ("r2", Role.READER))


@pytest.mark.parametrize(
    ("endpoint", "ports"),
    [
        (CustomEndpoint("e", 20), {2, 3}),
        (CustomEndpoint("e", 20, CustomKind.ANY), {1, 2, 3}),
        (CustomEndpoint("e", 20, members=("r1",)), {2}),
        (CustomEndpoint("e", 20, members=("w", "r1")), {2}),
        (CustomEndpoint("e", 20, CustomKind.ANY, members=("w", "r1")), {1, 2}),
        (CustomEndpoint("e", 20, excluded=("r1",)), {3}),
        (CustomEndpoint("e", 20, CustomKind.ANY, excluded=("r1",)), {1, 3}),
        (CustomEndpoint("e", 20, members=("w",)), set()),
        (CustomEndpoint("e", 20, excluded=("r1", "r2")), set()),
    ],
)
def test_a_custom_endpoint_leads_to_whom_it_names_in_the_role_that_it_wants(
    endpoint: CustomEndpoint, ports: set[int]
) -> None:
    fleet = roles(*THREE)
    fleet = fleet.with_cluster(replace(fleet.cluster("demo"), custom_endpoints=(endpoint,)))
    orders = {order.name: order for order in orders_for(fleet, seen(fleet, {}), "127.0.0.1", "127.0.0.1")}
    assert {target.port for target in orders["demo/e"].targets} == ports
    assert orders["demo/e"].fallback == ()
    assert orders["demo/e"].port == 20


def test_a_list_keeps_the_name_of_an_instance_that_was_removed_and_says_so() -> None:
    endpoint = CustomEndpoint("e", 20, members=("r1", "r2"))
    fleet = roles(*THREE)
    cluster = replace(fleet.cluster("demo"), custom_endpoints=(endpoint,))
    cluster = replace(cluster, instances=tuple(i for i in cluster.instances if i.instance_id != "r2"))
    fleet = fleet.with_cluster(cluster)
    orders = {order.name: order for order in orders_for(fleet, seen(fleet, {}), "127.0.0.1", "127.0.0.1")}
    assert {target.port for target in orders["demo/e"].targets} == {2}
    told = report_endpoints(cluster, Path("unused"), dict.fromkeys(cluster.endpoint_ports(), ("127.0.0.1", 1)), {})
    assert (told["custom"][0]["members"], told["custom"][0]["gone"]) == (["r1", "r2"], ["r2"])


def test_a_socket_is_for_who_is_on_its_machine() -> None:
    fleet = roles(*THREE)
    orders = {o.name: o for o in orders_for(fleet, seen(fleet, {"r2": "192.0.2.7"}), "127.0.0.1", "127.0.0.1")}
    found = {target.port: target.hand_over for target in orders["demo/reader"].targets}
    assert found == {2: "r1.sock", 3: ""}


def test_the_only_reader_that_becomes_the_writer_in_place_keeps_the_reader_endpoints_sessions() -> None:
    """With another reader it is no target of that endpoint any more, and they are cut."""
    before = roles(("w", Role.WRITER), ("r1", Role.READER))
    promoted = replace(before.cluster("demo").instance("r1"), role=Role.WRITER)
    after = before.with_cluster(replace(before.cluster("demo"), instances=(promoted,)))
    _, reader = orders_for(before, seen(before, {}), "127.0.0.1", "127.0.0.1")
    cluster, later = orders_for(after, seen(after, {}), "127.0.0.1", "127.0.0.1")
    assert reader.targets == later.fallback == cluster.targets
    assert later.targets == ()


def test_drivers_find_each_instance_at_its_own_address_and_one_port() -> None:
    fleet = roles(*THREE)
    cluster = replace(fleet.cluster("demo"), port=15432, reader_port=15433)
    at = tuple(replace(each, port=15433 + each.port) for each in cluster.instances)
    fleet = fleet.with_cluster(replace(cluster, instances=at))
    instances = seen(fleet, {})
    instances["r2"].ended("it was killed")
    orders = {o.name: o for o in driver_orders(fleet, instances, "127.0.0.1", "127.0.0.1")}
    plain = {o.name: o for o in orders_for(fleet, instances, "127.0.0.1", "127.0.0.1")}
    assert {name: order.host for name, order in orders.items()} == {
        "demo/driver/cluster": "127.0.60.72",
        "demo/driver/reader": "127.0.60.73",
        "demo/driver/w": "127.0.60.74",
        "demo/driver/r1": "127.0.60.75",
        "demo/driver/r2": "127.0.60.76",
    }
    assert {order.port for order in orders.values()} == {15432}
    for name in ("cluster", "reader"):
        assert orders[f"demo/driver/{name}"].targets == plain[f"demo/{name}"].targets
        assert orders[f"demo/driver/{name}"].fallback == plain[f"demo/{name}"].fallback
    assert [t.port for t in orders["demo/driver/w"].targets] == [15434]
    assert [t.port for t in orders["demo/driver/r1"].targets] == [15435]
    assert orders["demo/driver/r2"].targets == orders["demo/driver/r2"].fallback == ()
    assert (orders["demo/driver/r2"].hold_s or 99) < 5, "a driver looks elsewhere"


@pytest.mark.parametrize("listen_host", ["0.0.0.0", "192.0.2.7", "::1"])  # noqa: S104
def test_a_fleet_that_others_reach_has_no_addresses_of_this_machine_alone(listen_host: str) -> None:
    fleet = roles(*THREE)
    assert driver_orders(fleet, seen(fleet, {}), listen_host, "127.0.0.1") == ()


@pytest.mark.parametrize("name", ["cluster", "reader", "instances", "", "Upper", "1st", "a/b", "a" * 64])
def test_names_that_no_custom_endpoint_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="no name for an endpoint"):
        CustomEndpoint(name, 20)


def test_a_cluster_has_five_custom_endpoints_of_different_names() -> None:
    known: tuple[CustomEndpoint, ...] = ()
    for number in range(5):
        known = with_endpoint(known, CustomEndpoint(f"e{number}", 20 + number, members=("r1",)))
        with pytest.raises(UsageError, match="already"):
            with_endpoint(known, CustomEndpoint(f"e{number}", 30))
    with pytest.raises(UsageError, match="can have 5"):
        with_endpoint(known, CustomEndpoint("e5", 30))
    fleet = running_fleet()
    fleet = fleet.with_cluster(replace(fleet.cluster("demo"), custom_endpoints=known))
    assert unpack(pack(fleet)) == fleet
    with pytest.raises(UsageError, match="never both"):
        CustomEndpoint("e", 20, members=("r1",), excluded=("r2",))
