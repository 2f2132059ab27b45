"""A cluster's parameters, and repairs of what its users did to it: declared first, carried out by the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from aurora_ray.compute.commands import Configure
from aurora_ray.control.model.attempt import check_hope
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.perform.ending import end_in_order
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.registry import adapter
from aurora_ray.errors import AuroraError, UsageError

if TYPE_CHECKING:
    from aurora_ray.control.model.state import DBCluster, Fleet
    from aurora_ray.control.plane import ControlPlane

TELL_TIMEOUT_S: Final = 20.0


async def set_parameters(plane: ControlPlane, name: str, changes: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Sets parameters of a cluster (None: resets them) and tells its engine; what was done, by parameter.

    Raises UsageError, before anything changes, for what the engine does not know or take.
    """
    cluster = plane.fleet.cluster(name)
    engine = adapter(cluster.engine)
    bin_dir = Path(cluster.bin_dir) if cluster.bin_dir else None
    install = await asyncio.to_thread(engine.find, cluster.engine_version, bin_dir)
    needs = await asyncio.to_thread(engine.check_parameters, install, changes)
    wanted = {engine.canonical(given): value for given, value in changes.items()}

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(name)
        merged = {**dict(cluster.parameters), **wanted}
        kept = tuple(sorted((known, value) for known, value in merged.items() if value is not None))
        return fleet.with_cluster(replace(cluster, parameters=kept))

    fleet = await plane.commit(change)
    told = await _tell(plane, fleet.cluster(name))
    plane.events.note(
        EventKind.CLUSTER,
        name,
        f"parameters of {name}: " + ", ".join(f"{known} = {value}" for known, value in wanted.items()),
        name,
    )
    return [
        {"name": known, "value": value, "applies": needs[known] if told else "at the next start"}
        for known, value in wanted.items()
    ]


async def _tell(plane: ControlPlane, cluster: DBCluster) -> bool:
    """Whether all engines have heard of their parameters; who has not will at its next start."""
    return all(await asyncio.gather(*(_tell_one(plane, cluster, i.instance_id) for i in cluster.instances)))


async def _tell_one(plane: ControlPlane, cluster: DBCluster, instance_id: str) -> bool:
    instance = plane.processes.instances.get(instance_id)
    if instance is None or instance.seen.phase is not InstancePhase.AVAILABLE:
        return False
    try:
        async with asyncio.timeout(TELL_TIMEOUT_S):
            await instance.process.do(Configure(dict(cluster.parameters)))
    except (AuroraError, TimeoutError):
        return False
    return True


async def repair(plane: ControlPlane, name: str, kinds: Sequence[str], timeout_s: float) -> None:
    """Declares repairs and has the engine start anew with them; returns when they are made.

    A repair is declared as `kind:token`: the same kind, asked for later, is another one.

    Raises UsageError for a kind that there is not, and what `wait_until` raises.
    """
    known = adapter(plane.fleet.cluster(name).engine).repairs
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise UsageError(f"{', '.join(unknown) or 'nothing'} cannot be repaired; there is: {', '.join(known)}")
    declared = plane.fleet.cluster(name).writer()
    wanted = tuple(f"{kind}:{uuid4().hex[:8]}" for kind in kinds)

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(name)
        return fleet.with_cluster(replace(cluster, repairs=(*cluster.repairs, *wanted)))

    await plane.commit(change)
    plane.events.note(EventKind.CLUSTER, name, f"repair of {name} was asked for: {', '.join(kinds)}", name)
    instance = plane.processes.instances.get(declared.instance_id)
    plane.attempts.pop(key(Kind.INSTANCE, declared.instance_id), None)
    if instance is not None and instance.seen.phase is InstancePhase.AVAILABLE:
        await end_in_order(instance, plane.notify, timeout_s)
    plane.notify()

    def made() -> bool:
        check_hope(plane.attempts, key(Kind.INSTANCE, declared.instance_id))
        return not set(plane.fleet.cluster(name).repairs) & set(wanted)

    await plane.wait_until(made, timeout_s, f"repairing {name}")
