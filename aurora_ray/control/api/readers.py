"""Readers of a cluster, by a user's word: declared first, then the loop starts and opens them, or ends them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aurora_ray.compute.kinds import require_runnable
from aurora_ray.compute.role import Role
from aurora_ray.control.decide import sizing
from aurora_ray.control.decide.readers import (
    DEFAULT_TIER,
    check_tier,
    describe,
    reader_of,
    with_readers,
    without_reader,
)
from aurora_ray.control.model.attempt import check_hope
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.scaling import READERS_MAX, ReaderScaling
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.registry import adapter
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.plane import ControlPlane

    FreePorts = Callable[[Fleet, int], list[int]]


def check(count: int, engine: str) -> None:
    """Raises UsageError for a number of readers that a cluster with this engine cannot have."""
    if not 0 <= count <= READERS_MAX:
        raise UsageError(f"a cluster can have 0 to {READERS_MAX} readers, not {count}")
    if count:
        require_readable(engine)


def require_readable(engine: str) -> None:
    """Raises UsageError if a cluster with this engine can have no readers."""
    require_runnable(Role.READER, "one of them")
    if not adapter(engine).has_readers:
        raise UsageError(f"a cluster with engine {engine} has no readers yet: its servers cannot follow the volume")


async def add(
    plane: ControlPlane, name: str, count: int, *, tier: int, memory_bytes: int, free: FreePorts, timeout_s: float
) -> dict[str, Any]:
    """Declares `count` more readers (`memory_bytes` 0: of the size that engine.sizes gives), and waits until they
    accept statements. Raises UsageError, and what keeps one from that for good."""
    if count < 1:
        raise UsageError(f"{count} readers cannot be added")
    check(count, plane.fleet.cluster(name).engine)
    check_tier(tier)
    machine, memory_bytes = this_machine(), memory_bytes or plane.config.instance_bytes
    sizing.check_memory(memory_bytes, machine)
    before: set[str] = set()

    def change(fleet: Fleet) -> Fleet:
        nonlocal before
        before = {reader.instance_id for reader in fleet.cluster(name).readers()}
        fleet = with_readers(fleet, name, count, tier=tier, memory_bytes=memory_bytes, ports=free)
        return sizing.with_sizes(fleet, machine)

    fleet = await plane.commit(change)
    added = [reader for reader in fleet.cluster(name).readers() if reader.instance_id not in before]
    for reader in added:
        plane.events.note(EventKind.READER, reader.instance_id, f"{describe(reader)} was added to {name}", name)
    plane.notify()
    ids = [reader.instance_id for reader in added]
    await wait(plane, ids, timeout_s)
    return {"cluster": name, "instances": ids}


async def declare(plane: ControlPlane, name: str, count: int, *, free: FreePorts) -> None:
    """Declares as many readers as are lacking to `count`. Raises UsageError."""
    check(count, plane.fleet.cluster(name).engine)
    machine = this_machine()

    def change(fleet: Fleet) -> Fleet:
        missing = max(0, count - len(fleet.cluster(name).readers()))
        size = plane.config.instance_bytes
        fleet = with_readers(fleet, name, missing, tier=DEFAULT_TIER, memory_bytes=size, ports=free)
        return sizing.with_sizes(fleet, machine)

    if count:
        await plane.commit(change)
        plane.notify()


async def remove(plane: ControlPlane, instance_id: str, timeout_s: float) -> dict[str, Any]:
    """Forgets a reader, and waits until its process is gone: its sessions end, and no others. Raises UsageError."""
    cluster, _ = reader_of(plane.fleet, instance_id)
    await plane.commit(lambda fleet: without_reader(fleet, instance_id))
    plane.events.note(EventKind.READER, instance_id, f"reader {instance_id} was removed", cluster.name)
    plane.notify()
    known = plane.processes

    def gone() -> bool:
        return instance_id not in known.instances and instance_id not in known.unsure

    await plane.wait_until(gone, timeout_s, f"ending {instance_id}")
    return {"cluster": cluster.name, "instance": instance_id, "removed": True}


async def set_scaling(plane: ControlPlane, name: str, rule: ReaderScaling | None) -> dict[str, Any]:
    """Declares by what rule the number of readers follows their load; None: by none, and those that there are stay."""
    if rule is not None:
        require_readable(plane.fleet.cluster(name).engine)

    def change(fleet: Fleet) -> Fleet:
        cluster = replace(fleet.cluster(name), scaling=rule)
        if rule is None:
            cluster = replace(cluster, instances=tuple(replace(i, leaving_since_s=0.0) for i in cluster.instances))
        return fleet.with_cluster(cluster)

    await plane.commit(change)
    told = f"{rule.min_readers} to {rule.max_readers}, {rule.target:g} {rule.metric}" if rule is not None else "off"
    plane.events.note(EventKind.CLUSTER, name, f"scaling of the readers of {name}: {told}", name)
    plane.notify()
    return {"cluster": name, "scaling": rule.report() if rule is not None else None}


async def wait(plane: ControlPlane, instance_ids: Sequence[str], timeout_s: float) -> None:
    """Waits until these readers accept statements; one that is removed meanwhile is not waited for. Raises what keeps
    one from that for good."""

    def serve() -> bool:
        return all(_serves(plane, instance_id) for instance_id in instance_ids)

    await plane.wait_until(serve, timeout_s, f"starting {', '.join(instance_ids)}")


def _serves(plane: ControlPlane, instance_id: str) -> bool:
    cluster = plane.fleet.cluster_of(instance_id)
    if cluster is None:
        return True
    check_hope(plane.attempts, key(Kind.INSTANCE, instance_id))
    instance = plane.processes.instances.get(instance_id)
    return instance is not None and instance.seen.serves(cluster.instance(instance_id).role)
