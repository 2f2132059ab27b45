"""One verb under one crash: the control plane runs, something ends after the k-th effect, and all must come to rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from aurora_ray.compute.config import IncarnationPhase
from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.runtime import ControlConfig
from aurora_ray.control.observe.endpoints import cluster_endpoint, endpoint_name, reader_endpoint
from aurora_ray.control.plane import ControlPlane
from aurora_ray.errors import AuroraError
from tests.control.crash.abroad import FakeRegion, install
from tests.control.crash.handles import Clients, FakeRuntime
from tests.control.crash.world import Content, Crash, Hand, World

if TYPE_CHECKING:
    from aurora_ray.control.decide.reconcile import Action
    from aurora_ray.control.model.state import DBCluster, Fleet

AZS: Final = ("a", "b", "c")
GROUP_BYTES: Final = 1 << 30
REST_WITHIN_S: Final = 200.0
LOOK_EVERY_S: Final = 0.5
AT_REST_FOR: Final = 4  # looks in a row
REPLACE_AFTER_S: Final = 6.0
REGIONS_DIR: Final = Path(__file__).parent / "regions"


class Plane(ControlPlane):
    """A control plane whose actions are counted."""

    performed: set[type[Action]]

    async def _carry_out(self, action: Action) -> None:
        self.performed.add(type(action))
        await super()._carry_out(action)


class Driver:
    """The world, and one control plane after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.world = World()
        self.region = FakeRegion()
        self.performed: set[type[Action]] = set()
        self.graveyard_s = 24 * 3600.0
        self.promote_in_place = False
        self.exports_to: str | None = None
        self.version = 0  # of the control state, to go back to
        self.rescue: Callable[[], Coroutine[Any, Any, object]] | None = None  # asked for while no state can be loaded
        self.before_start: Callable[[], object] | None = None  # what a person does before a control plane can start
        self._task: asyncio.Task[None] | None = None
        self.begin()

    def begin(self) -> None:
        """A control plane starts."""
        self.world.hand = hand = Hand(self.world)
        if self.before_start is not None:
            self.before_start()
        config = ControlConfig(
            self.directory,
            "somewhere",
            AZS,
            GROUP_BYTES,
            1 << 30,
            300.0,
            1 << 28,
            replace_after_s=REPLACE_AFTER_S,
            replace_empty_after_s=REPLACE_AFTER_S,
            graveyard_s=self.graveyard_s,
            promote_in_place=self.promote_in_place,
            regions_dir=str(REGIONS_DIR),
            exports_to=self.exports_to,
        )
        runtime: Any = FakeRuntime(hand)
        self.plane = Plane(config, runtime, endpoints=runtime, clock=asyncio.get_running_loop().time)
        self.plane.performed = self.performed
        self.plane.processes.clients = cast("Any", Clients(hand))
        install(self.plane, self.world, self.region)
        self.api = ControlApi(self.plane)
        self._task = asyncio.create_task(self.plane.run(), name="control plane")

    async def vanish(self) -> None:
        """The control plane's process is no more."""
        self.world.hand.die()
        assert self._task is not None
        self._task.cancel()
        await self.plane.processes.tasks.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def asked(self, call: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """A call that has come to its end, or to that of the control plane; what it raised is in it.

        A control plane that the call itself ends, to begin another one, is no end of the call.
        """
        acting, dying = asyncio.create_task(call), asyncio.create_task(self.world.struck.wait())
        await asyncio.wait({acting, dying}, return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        acting.cancel()
        await asyncio.gather(acting, return_exceptions=True)
        return acting

    async def down_and_up(self) -> None:
        """Everything is stopped in order, and started again."""
        await self.plane.shutdown()
        assert not [p for p in (*self.world.nodes.values(), *self.world.instances.values()) if p.alive]
        await self.vanish()
        self.begin()

    @property
    def fleet(self) -> Fleet:
        return self.plane.fleet

    async def at_rest(self) -> None:
        """Waits until nothing goes on any more and all is as declared; a control plane that ends is succeeded."""
        looks, problems, refused = 0, ["it has not begun"], ""
        until_s = asyncio.get_running_loop().time() + REST_WITHIN_S
        while looks < AT_REST_FOR:
            if self.world.hand.dead.is_set() or (self._task is not None and self._task.done()):
                await self.vanish()
                self.begin()
                looks = 0
            await asyncio.sleep(LOOK_EVERY_S)  # not synchronisation: the clock is virtual
            if self.rescue is not None and not self.plane.is_open:
                rescued = await self.asked(self.rescue())
                refused = "" if rescued.cancelled() else str(rescued.exception() or "")
            problems = self.problems()
            looks = 0 if problems else looks + 1
            if asyncio.get_running_loop().time() > until_s:
                trail = "\n  ".join(sentence for _, sentence in self.plane.journal.trail)
                told = "; ".join([*problems, refused])
                raise AssertionError(f"not at rest after {REST_WITHIN_S:g} s: {told}\n  {trail}")

    # ---- what is to be so when nothing goes on

    def problems(self) -> list[str]:
        """In what the world is not as declared."""
        plane, world, fleet = self.plane, self.world, self.fleet
        if not plane.is_open:
            return ["the control state is not loaded"]
        found = [f"{key} goes on" for key in plane.observe().busy if not key.startswith(LOOKS)]
        declared = {i.instance_id: c for c in fleet.clusters for i in c.instances}
        running = {i.name for i in world.instances.values() if i.alive}
        found += [f"{name} runs and is not declared" for name in running - declared.keys()]
        for instance_id, cluster in declared.items():
            found += self._instance(instance_id, cluster)
        for cluster in fleet.clusters:
            found += self._leads(cluster)
        found += self._segments()
        running = {n: i.capacity.acu for n, i in world.instances.items() if i.serves and i.capacity is not None}
        if world.pools != running:
            found.append(f"{running} is in force, and {world.pools} is held")
        found += self._retention()
        if world.running() != {node.node_id for node in fleet.nodes}:
            found.append(f"{sorted(world.running())} run")
        passfiles = {path.stem for path in (self.directory / "passfiles").glob("*.pgpass")}
        if passfiles != {cluster.name for cluster in fleet.clusters}:
            found.append(f"there are pass files of {sorted(passfiles)}")
        if fleet.replacements() or any(node.leaving for node in fleet.nodes):
            found.append("a node is being replaced")
        return found

    def _instance(self, instance_id: str, cluster: DBCluster) -> Iterator[str]:
        there, seen = self.world.instances.get(instance_id), self.plane.processes.instances.get(instance_id)
        if cluster.paused_since_s and cluster.instance(instance_id).role.traits.addressed:
            if there is not None and there.alive and there.phase not in (None, IncarnationPhase.ENDED):
                yield f"{instance_id} serves although it is paused"
            return
        if there is None or not there.alive or there.phase is not IncarnationPhase.AVAILABLE or seen is None:
            yield f"{instance_id} does not serve"
            return
        declared = cluster.instance(instance_id)
        owns = there.volume.owner is there
        if there.volume.volume_id != cluster.volume.volume_id or owns is not declared.role.traits.owns:
            yield f"{instance_id} does not have its volume"
        if there.config is None or there.config.role is not declared.role or seen.seen.role is not declared.role:
            yield f"{instance_id} is no {declared.role}"
        if not cluster.volume.initialised or there.volume.content is not Content.COMPLETE:
            yield f"{cluster.name} is not noted to be initialised"
        if there.config is None or there.config.port != declared.port:
            yield f"{instance_id} listens elsewhere"
        if there.config is None or declared.memory_bytes not in (0, there.config.memory_bytes):  # 0: not known yet
            yield f"{instance_id} has another size"
        has, rule = there.capacity, cluster.capacity
        if declared.role.traits.addressed and (
            (has is None) is not (rule is None)
            or (has is not None and rule is not None and not rule.least_acu <= has.acu <= rule.max_acu)
        ):
            yield f"{instance_id} has a capacity of {has}, and {rule} is declared"
        if set(there.groups) != {g.group for g in cluster.volume.groups}:
            yield f"{instance_id} does not use all groups"
        if dict(seen.seen.told) != {n: self.world.nodes[n].info.address for n in self.world.running()}:
            yield f"{instance_id} does not know where the nodes are"

    def _leads(self, cluster: DBCluster) -> Iterator[str]:
        readers = {reader.port for reader in cluster.readers()} if not cluster.paused_since_s else set()
        writers = {cluster.writer().port} if not cluster.paused_since_s else set()
        endpoints = self.world.endpoints
        if endpoints is not None and endpoints.alive and cluster.name in endpoints.held:
            yield f"somebody waits for {cluster.name}"
        for name, ports in (
            (cluster_endpoint(cluster.name), set() if cluster.is_secondary else writers),
            (reader_endpoint(cluster.name), readers),
            *(
                (
                    endpoint_name(cluster.name, custom.name),
                    {i.port for i in cluster.instances if writers and custom.leads_to(i.instance_id, i.role)},
                )
                for custom in cluster.custom_endpoints
            ),
        ):
            orders = {o.name: o for o in endpoints.orders} if endpoints is not None and endpoints.alive else {}
            order = orders.get(name)
            taken = order is not None and order.port in self.world.taken_ports
            if order is None or taken or {target.port for target in order.targets} != ports:
                yield f"the endpoint {name} does not lead to {sorted(ports)}"

    def _retention(self) -> Iterator[str]:
        for cluster in self.fleet.clusters:
            wanted = (cluster.window_s, cluster.window_log_bytes)
            for node_id in self.world.running():
                disk = self.world.disks[node_id]
                if disk.retention.get(cluster.volume.volume_id) != wanted and any(
                    volume_id == cluster.volume.volume_id for volume_id, _ in disk.segments
                ):
                    yield f"{node_id} keeps history of {cluster.name} for another time"

    def _segments(self) -> list[str]:
        fleet = self.fleet
        clusters = (*fleet.clusters, *(deleted.cluster for deleted in fleet.deleted))
        past = (past.volume for cluster in clusters for past in cluster.past)
        known = [fleet.control_volume, *(cluster.volume for cluster in clusters), *past]
        wanted = {(n, v.volume_id, g.group) for v in known for g in v.groups for n in g.placement.all_node_ids}
        there = {(n, *segment) for n, disk in self.world.disks.items() for segment in disk.segments}
        noted = {(n, v.volume_id, g.group) for v in known for g in v.groups for n in g.created_on}
        found = [f"{n} lacks group {g}" for n, _, g in wanted - there]
        found += [f"{n} has a segment that nobody declared" for n, _, _ in there - wanted]
        return found + [f"{n} is not noted to have group {g}" for n, _, g in wanted - noted]


LOOKS: Final = (
    *(
        f"{kind}:"
        for kind in (Kind.LOOK_AT_NODE, Kind.LOOK_AT_INSTANCE, Kind.REPLICAS, Kind.LOOK_AT_REGION, Kind.COMMITS)
    ),
    str(Kind.LOOK_AT_ENDPOINTS),
)


@dataclass(frozen=True, slots=True)
class Verb:
    """What somebody asks for, or what happens: `act`, after `prepare`. `reached`: whether it is as it shall be then.

    `again`: whether it is asked for once more if that is not so (a user whose call failed does); `api` is the call of
    ControlApi that it enumerates.
    """

    name: str
    act: Callable[[Driver], Coroutine[Any, Any, object]]
    reached: Callable[[Driver], object] = lambda _: True
    prepare: Callable[[Driver], Awaitable[object]] | None = None
    api: str = ""
    again: bool = True


@dataclass(slots=True)
class Run:
    """What a run came to."""

    effects: list[str]
    performed: set[type[Action]] = field(default_factory=set)


async def run_verb(verb: Verb, crash: Crash, directory: Path) -> Run:
    """One run. Raises AssertionError if anything is not as it shall be."""
    driver = Driver(directory)
    world = driver.world
    if verb.prepare is not None:
        await verb.prepare(driver)
        await driver.at_rest()
    world.crash = crash
    acted = await driver.asked(verb.act(driver))
    if not acted.cancelled():
        with contextlib.suppress(*(() if crash.at == 0 else (AuroraError, TimeoutError))):
            acted.result()
    await driver.at_rest()
    world.crash = None
    if not verb.reached(driver) and verb.again:
        await verb.act(driver)
        await driver.at_rest()
    assert verb.reached(driver), f"{verb.name} was not reached"
    assert world.lost == []
    for volume in world.volumes.values():
        assert volume.content is not Content.COMPLETE or volume.owner is None or volume.rows > 0
    await driver.vanish()
    return Run(crash.effects, driver.performed)
