"""The past, by a user's word: clones, rewinds, marks, and how far all of it reaches back.

All of it is one thing: a fork is declared, with the LSN at which it begins, and the loop makes it (`decide/forks.py`).
What is looked up here, and held for a minute, is that LSN.

**Which present.** A running writer is asked for its VDL, so a clone of the present has all that was acknowledged before
it was asked for. **Which past.** A cluster that was rewound has had several volumes, each for a time. A time is looked
up in the one that was the cluster's at that time, so a rewind is undone by going to a moment before it; an LSN, in the
present one.

**A volume that nobody serves**: a deleted cluster's, for as long as the graveyard keeps it, and those from before a
rewind. Storage may not have heard there of what was acknowledged last. So when the moment asked for reaches that far,
the volume is opened and closed once, as its next writer would: what that finds is its end, for good.

**What a clone takes over**: engine and version, unless another minor version of the series is asked for; parameters,
the superuser's password (it stands in the data as well), and the size, if it is not more than no instance was given
yet. Its ports, readers and history are its own.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from aurora_ray.compute.role import Role
from aurora_ray.control.api.capacity import wake
from aurora_ray.control.decide import forks, graveyard, sizing
from aurora_ray.control.model.moments import Moment, parse
from aurora_ray.control.model.origins import Mark, Origin
from aurora_ray.control.model.placement import place_next
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, VolumeState
from aurora_ray.control.model.store import volume_spec
from aurora_ray.control.report import status as report
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.registry import adapter
from aurora_ray.engine.sizes import memory_for_instances
from aurora_ray.errors import AuroraError, OutOfRangeError, UsageError
from aurora_ray.volume.fork import find_point
from aurora_ray.volume.origin import LSN_MAX, ForkPoint, GroupPlace, Range, Target, describe_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.plane import ControlPlane
    from aurora_ray.engine.machine import Machine
    from aurora_ray.volume.origin import Answers

    FreePorts = Callable[[Fleet, int], list[int]]

MARKS_MAX: Final = 1000  # of a cluster
LOOK_TIMEOUT_S: Final = 2.0
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Found:
    """Where a moment lies."""

    volume: VolumeState
    point: ForkPoint
    whole: Range


# ---- verbs


async def clone(
    plane: ControlPlane,
    source: str,
    name: str,
    at: str,
    *,
    memory_bytes: int = 0,
    temporary_s: float = 0.0,
    version: str | None = None,
    bin_dir: str | None = None,
    free: FreePorts,
    timeout_s: float,
) -> dict[str, Any]:
    """Declares `name`, a cluster with all that `source` had at the moment `at` (empty: the present). `temporary_s`: it
    is read-only, and is deleted after so many seconds, once nobody uses it. `version`, `bin_dir`: of the engine.

    Raises UsageError, OutOfRangeError, which names what can be had, QuorumLostError, and ConfigurationError for an
    engine that is not here.
    """
    machine = this_machine()
    sizing.check_memory(memory_bytes, machine)
    programs = await programs_for(graveyard.source(plane.fleet, source), version, bin_dir)
    found = await find(plane, source, parse(at, time.time()), timeout_s)
    volume = forks.forked(found.volume, Origin.of(found.volume.volume_id, found.point), uuid4())
    await _hold(plane, found)

    def change(fleet: Fleet) -> Fleet:
        if any(cluster.name == name for cluster in fleet.clusters):
            raise UsageError(f"there is a cluster {name!r} already")
        parent = graveyard.source(fleet, source)
        if found.volume.volume_id not in {v.volume_id for v in (parent.volume, *(p.volume for p in parent.past))}:
            raise OutOfRangeError(f"what {source} was {_moment(found)} was given up meanwhile")
        cluster = _cloned(fleet, parent, volume, name, free(fleet, 3))
        memory = memory_bytes or (0 if temporary_s else size_for(fleet, parent.writer().memory_bytes, machine))
        writer = replace(cluster.writer(), memory_bytes=memory)
        cluster = replace(cluster, instances=(writer,), bin_dir=cluster.bin_dir if programs is None else programs)
        if temporary_s:
            read_only = adapter(cluster.engine).read_only_parameters
            parameters = tuple(sorted({**dict(cluster.parameters), **read_only}.items()))
            cluster = replace(cluster, until_s=time.time() + temporary_s, parameters=parameters)
        return sizing.with_sizes(fleet.with_cluster(cluster), machine)

    cluster = (await plane.commit(change)).cluster(name)
    path = report.passfile(plane.config.data_dir, name, cluster.engine)
    await asyncio.to_thread(adapter(cluster.engine).write_passfile, path, cluster.superuser_password)
    told = f"{name} is a clone of {source} as of {_moment(found)}"
    plane.events.note(EventKind.CLUSTER, name, told, name)
    plane.notify()
    return {"cluster": name, "source": source, **_told(found)}


async def programs_for(source: DBCluster, version: str | None, bin_dir: str | None) -> str | None:
    """Where the programs are of the minor version that is asked for; None: as the source has them. Raises UsageError
    for one that cannot open the source's data, ConfigurationError for one that is not here."""
    if version is None and bin_dir is None:
        return None
    found = await asyncio.to_thread(adapter(source.engine).find, version, Path(bin_dir) if bin_dir else None)
    if found.series != source.engine_version:
        raise UsageError(
            f"{source.name} is of {source.engine} {source.engine_version}: a clone of it cannot be of {found.version}"
        )
    return str(found.bin_dir)


def size_for(fleet: Fleet, memory_bytes: int, machine: Machine) -> int:
    """The same size, if no other instance was given that already; else 0."""
    return memory_bytes if sizing.given(fleet) + memory_bytes <= memory_for_instances(machine) else 0


def _cloned(fleet: Fleet, source: DBCluster, volume: VolumeState, name: str, ports: Sequence[int]) -> DBCluster:
    az = place_next(fleet)
    writer = DBInstance(f"{name}-1", Role.WRITER, az, ports[2])
    return DBCluster(
        name,
        source.engine,
        source.engine_version,
        source.bin_dir,
        ports[0],
        source.superuser_password,
        volume,
        (writer,),
        created_at_s=time.time(),
        cache_bytes=source.cache_bytes,
        reader_port=ports[1],
        parameters=source.parameters,
        window_s=source.window_s,
        window_log_bytes=source.window_log_bytes,
        succession=source.succession,  # the fork's epochs go on from its parent's
        residency=source.residency,
    )


async def backtrack(plane: ControlPlane, name: str, to: str, timeout_s: float) -> dict[str, Any]:
    """Declares that a cluster goes on from what it was at the moment `to`. What it was until now is kept for as long as
    its window says. Returns when its writer has left the former volume.

    Raises UsageError, OutOfRangeError, which names what can be had, and QuorumLostError.
    """
    if not to:
        raise UsageError("say to what moment, for example --to -5m")
    before = plane.fleet.cluster(name).volume.volume_id
    found = await find(plane, name, parse(to, time.time()), timeout_s)
    # Whoever sees epochs of a cluster sees them rise, whatever volume they are of.
    last = [plane.processes.last_status(i.instance_id) for i in plane.fleet.cluster(name).instances]
    epochs = [status.epoch for status in last if status is not None]
    point = found.point._replace(first_epoch=max([found.point.epoch, *epochs]) + 1)
    volume = forks.forked(found.volume, Origin.of(found.volume.volume_id, point), uuid4())
    await _hold(plane, found)
    now_s = time.time()
    fleet = await plane.commit(lambda fleet: forks.with_rewound(fleet, name, before, volume, now_s))
    if fleet.cluster(name).volume.volume_id != volume.volume_id:
        raise UsageError(f"{name} was rewound by somebody else meanwhile: ask again if it shall be once more")
    undo = describe_time(int(now_s * 1e6))
    told = f"{name} was rewound to {_moment(found)}; `aurora backtrack {name} --to {undo}` undoes it"
    plane.events.note(EventKind.CLUSTER, name, told, name)
    plane.say(told)
    plane.notify()

    def left() -> bool:
        seen = [plane.processes.instances.get(i.instance_id) for i in plane.fleet.cluster(name).instances]
        return all(each is None or each.seen.volume_id in ("", str(volume.volume_id)) for each in seen)

    await plane.wait_until(left, timeout_s, f"rewinding {name}")
    return {"cluster": name, "undo": undo, **_told(found)}


async def mark(plane: ControlPlane, name: str, label: str, timeout_s: float) -> dict[str, Any]:
    """Gives the present a name, for `mark:LABEL`; an older mark of that name is forgotten. Raises UsageError."""
    if not is_label(label):
        raise UsageError(f"{label!r} is no label: letters, digits, dots, dashes and underscores")
    found = await find(plane, name, Moment(), timeout_s)
    made = Mark(label, found.volume.volume_id, found.point.lsn, time.time())

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(name)
        others = tuple(each for each in cluster.marks if each.label != label)
        if len(others) >= MARKS_MAX:
            others = others[1:]
        return fleet.with_cluster(replace(cluster, marks=(*others, made)))

    await plane.commit(change)
    return {"cluster": name, "mark": label, **_told(found)}


async def set_window(plane: ControlPlane, name: str, window_s: int, log_bytes: int) -> dict[str, Any]:
    """Declares for how long history is kept from now on, and for up to how much redo a copy; 0: as it is."""

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(name)
        return fleet.with_cluster(
            replace(
                cluster,
                window_s=window_s or cluster.window_s,
                window_log_bytes=log_bytes or cluster.window_log_bytes,
            )
        )

    cluster = (await plane.commit(change)).cluster(name)
    plane.notify()
    return {"cluster": name, "window_s": cluster.window_s, "window_log_bytes": cluster.window_log_bytes}


def is_label(text: str) -> bool:
    """Whether a moment can be called so."""
    return _LABEL.fullmatch(text) is not None


# ---- looking up


async def window(plane: ControlPlane, cluster: DBCluster) -> dict[str, Any] | None:
    """For `status`: how far back the cluster can go now; None if too few storage nodes say so."""
    volume = cluster.past[-1].volume if cluster.past else cluster.volume
    try:
        oldest = await _find(plane, volume, Target())
        latest = oldest if volume is cluster.volume else await _find(plane, cluster.volume, Target())
    except AuroraError:
        return None
    return {
        "earliest": describe_time(oldest.whole.earliest_time_us),
        "latest": describe_time(latest.whole.latest_time_us),
        "earliest_lsn": latest.whole.earliest_lsn,
        "latest_lsn": latest.whole.latest_lsn,
        "window_s": cluster.window_s,
        "window_log_bytes": cluster.window_log_bytes,
        "rewound": len(cluster.past),
        "marks": [{"label": each.label, "lsn": each.lsn} for each in cluster.marks],
    }


async def find(plane: ControlPlane, name: str, moment: Moment, timeout_s: float) -> Found:
    """Where a moment of a cluster lies, which may have been deleted. Raises UsageError, OutOfRangeError,
    QuorumLostError."""
    cluster = graveyard.source(plane.fleet, name)
    found = await _found(plane, cluster, moment, timeout_s)
    first_lsn = cluster.membership.first_lsn if cluster.membership is not None else 0
    if found.point.lsn < first_lsn:
        raise OutOfRangeError(
            f"the copy of {name} in {plane.fleet.region} begins at lsn:{first_lsn}: go back no further"
        )
    return found


async def _found(plane: ControlPlane, cluster: DBCluster, moment: Moment, timeout_s: float) -> Found:
    name = cluster.name
    if not cluster.volume.initialised:
        raise UsageError(f"{name} is being created: wait until it is available")
    if moment.mark is not None:
        volume, target = _marked(cluster, moment.mark)
    elif moment.time_us is not None:
        volume, target = forks.in_force_at(cluster, moment.time_us / 1e6), Target(LSN_MAX, moment.time_us)
    else:
        volume, target = cluster.volume, Target(LSN_MAX if moment.lsn is None else moment.lsn)
    written = await _written(plane, cluster, volume)
    if target == Target() and not written and _has_writer(plane, cluster):
        # Storage may not have heard yet of what was acknowledged last: the next writer finds it.
        await wake(plane, name, "its present was asked for", timeout_s)
        await plane.wait_until(lambda: _serves(plane, name), timeout_s, f"the writer of {name}")
        cluster = plane.fleet.cluster(name)
        volume, written = cluster.volume, await _written(plane, cluster, cluster.volume)
    if not written and not _is_served(plane, cluster, volume):
        written = await _end_of(plane, volume, target, timeout_s)
    return await _find(plane, volume, target, written)


def _has_writer(plane: ControlPlane, cluster: DBCluster) -> bool:
    return _is_declared(plane, cluster) and not cluster.is_secondary


def _is_declared(plane: ControlPlane, cluster: DBCluster) -> bool:
    found = next((each for each in plane.fleet.clusters if each.name == cluster.name), None)
    return (
        found is not None
        and found.phase is ClusterPhase.AVAILABLE
        and found.volume.volume_id == cluster.volume.volume_id
    )


def _is_served(plane: ControlPlane, cluster: DBCluster, volume: VolumeState) -> bool:
    """Whether a writer may be on the volume, or will be."""
    if volume.volume_id == cluster.volume.volume_id and _is_declared(plane, cluster):
        return True
    seen = [plane.processes.instances.get(instance.instance_id) for instance in cluster.instances]
    return any(each is not None and each.seen.volume_id == str(volume.volume_id) for each in seen)


async def _end_of(plane: ControlPlane, volume: VolumeState, target: Target, timeout_s: float) -> int:
    """The end of a volume that nobody serves; 0 if the target lies clearly before it. Raises QuorumLostError."""
    known = (await _find(plane, volume, Target())).whole
    if target.lsn <= known.latest_lsn or 0 < target.time_us < known.latest_time_us:
        return 0
    return await plane.processes.clients.recover(volume_spec(volume), plane.addresses(), timeout_s)


def _marked(cluster: DBCluster, label: str) -> tuple[VolumeState, Target]:
    made = next((each for each in cluster.marks if each.label == label), None)
    if made is None:
        known = ", ".join(each.label for each in cluster.marks) or "none"
        raise UsageError(f"{cluster.name} has no mark {label!r} (there is: {known}); `aurora mark` makes one")
    volumes = {v.volume_id: v for v in (cluster.volume, *(past.volume for past in cluster.past))}
    if made.volume_id not in volumes:
        raise OutOfRangeError(f"what {cluster.name} was at mark {label!r} is no longer kept")
    return volumes[made.volume_id], Target(made.lsn)


async def _find(plane: ControlPlane, volume: VolumeState, target: Target, written_lsn: int = 0) -> Found:
    nodes = dict(plane.processes.nodes)

    async def ask_node(node_id: str, wish: Target) -> list[GroupPlace]:
        try:
            return await plane.processes.clients.locate(node_id, nodes[node_id].seen.address, volume.volume_id, wish)
        except AuroraError:
            return []

    async def ask(wish: Target) -> Answers:
        return dict(zip(nodes, await asyncio.gather(*(ask_node(n, wish) for n in nodes)), strict=True))

    placements = [replace(group, next_node_ids=()).placement for group in volume.groups]
    point, whole = await find_point(ask, placements, target, written_lsn)
    return Found(volume, point, whole)


async def _written(plane: ControlPlane, cluster: DBCluster, volume: VolumeState) -> int:
    """Up to where the cluster's writer says that all is durable; 0 if none serves, or it serves on another volume."""
    instance = plane.processes.instances.get(cluster.writer().instance_id)
    if instance is None or not instance.seen.serves(Role.WRITER):
        return 0
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            status = await instance.process.status()
    except (AuroraError, TimeoutError):
        return 0
    if status is None or status.volume_id not in ("", str(volume.volume_id)):
        return 0
    return status.vdl


def _serves(plane: ControlPlane, name: str) -> bool:
    cluster = plane.fleet.cluster(name)
    instance = plane.processes.instances.get(cluster.writer().instance_id)
    on = ("", str(cluster.volume.volume_id))
    return instance is not None and instance.seen.serves(Role.WRITER) and instance.seen.volume_id in on


async def _hold(plane: ControlPlane, found: Found) -> None:
    """Asks the nodes to keep what is to be forked until they have; those that do not answer may not be able to."""
    volume_id: UUID = found.volume.volume_id
    holding = (
        plane.processes.clients.hold(node_id, node.seen.address, volume_id, found.point.lsn)
        for node_id, node in dict(plane.processes.nodes).items()
    )
    await asyncio.gather(*holding, return_exceptions=True)


def _moment(found: Found) -> str:
    return f"{describe_time(found.point.time_us)} (lsn:{found.point.lsn})"


def _told(found: Found) -> dict[str, Any]:
    return {
        "lsn": found.point.lsn,
        "time": describe_time(found.point.time_us),
        "earliest": describe_time(found.whole.earliest_time_us),
        "latest": describe_time(found.whole.latest_time_us),
    }
