"""Endpoints follow the roles, through the death of what is behind them, of their process and of the control plane."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aurora_ray.compute.config import WriterPhase, WriterStatus
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.runtime import ControlConfig, ProcessGoneError
from aurora_ray.control.model.state import ClusterPhase, DBInstance, Fleet
from aurora_ray.control.observe.endpoints import (
    MOVE_AFTER_S,
    Endpoints,
    MoveEndpoint,
    PointEndpoints,
    StartEndpoints,
    address_of,
    orders_for,
)
from aurora_ray.control.observe.known import Instance
from aurora_ray.control.observe.processes import Tasks
from aurora_ray.endpoint.host import EndpointHost, EndpointOrder, EndpointState
from aurora_ray.errors import FencedError
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
        status = WriterStatus(WriterPhase.AVAILABLE, epoch=epoch, pid=epoch * 100)
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
        assert plane.address(cluster, Role.READER, {}) == ("127.0.0.1", one.address[1])
        assert world.plane.address(cluster, Role.READER, {}) == ("127.0.0.1", world.reader_port)


def test_addresses_are_numeric() -> None:
    assert address_of("127.0.0.1", "192.0.2.7") == "127.0.0.1"
    assert address_of("0.0.0.0", "192.0.2.7") == "192.0.2.7"  # noqa: S104
    assert address_of("::", "192.0.2.7") == "192.0.2.7"
    assert address_of("localhost", "192.0.2.7") == "192.0.2.7"


def test_a_cluster_without_available_instances_is_listened_for() -> None:
    fleet = running_fleet()
    (order,) = orders_for(fleet, {}, "127.0.0.1")
    assert (order.name, order.targets, order.fallback) == ("demo/cluster", (), ())


async def test_an_endpoint_whose_port_something_else_has_moves_after_a_while(world: World) -> None:
    with socket.create_server(("127.0.0.1", world.cluster_port)):
        await world.settle()
        assert world.plane.taken(world.fleet.cluster("demo"))
        assert not _moves(world), "it may be about to let go of it"
        world.now_s += MOVE_AFTER_S / 2
        await world.settle()
        world.now_s += MOVE_AFTER_S / 2
        (move,) = _moves(world)
        assert (move.cluster, move.role) == ("demo", Role.WRITER)
        elsewhere = world.fleet.cluster("demo").with_endpoint_port(Role.WRITER, world.ports.allocate())
        world.fleet = world.fleet.with_cluster(elsewhere)
        assert world.plane.problem(elsewhere) == "", "that was of the port which it had"
        assert not world.plane.serves(elsewhere)
        await world.settle()
    assert not _moves(world)
    assert not world.plane.taken(elsewhere)


def _moves(world: World) -> list[MoveEndpoint]:
    return [action for action in world.wanted() if isinstance(action, MoveEndpoint)]
