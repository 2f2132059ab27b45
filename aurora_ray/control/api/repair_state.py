"""Repairs of the control state by somebody's word, while the control plane runs: what there is, another version of it,
or a new one from what the storage nodes hold.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from aurora_ray.compute.role import Role
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.state import DBCluster, DBInstance, DeletedCluster, Fleet, Group, VolumeState
from aurora_ray.control.model.store import read_versions, volume_spec
from aurora_ray.control.report import status as report
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.registry import adapters
from aurora_ray.errors import AuroraError, ConfigurationError, UsageError
from aurora_ray.replication.succession import generation_of
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.read.reader import VolumeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aurora_ray.control.model.store import Version
    from aurora_ray.control.plane import ControlPlane
    from aurora_ray.storage.v1 import storage_pb2 as pb

TIMEOUT_S: Final = 20.0


@dataclass(slots=True)
class _Held:
    """A volume as the nodes tell of it: who has a copy of each group, and who is said to be a member."""

    page_size: int
    holders: dict[int, set[str]] = field(default_factory=dict)
    members: dict[int, tuple[int, tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    vdl: int = 0
    epoch: int = 0  # the highest that was promised


async def look(plane: ControlPlane) -> dict[str, Any]:
    """What versions there are, what the storage nodes hold, and what the fleet's file says: plain values."""
    versions, held = await asyncio.gather(_versions(plane), _volumes(plane))
    file = bootstrap.load(plane.config.data_dir)
    names = _names(plane.fleet)
    return {
        "open": plane.is_open,
        "in_force": plane.fleet.revision if plane.is_open else None,
        "versions": [version.report() for version in versions],
        "volumes": [
            {
                "volume": str(volume_id),
                "declared_as": names.get(volume_id, ""),
                "protection_groups": len(volume.holders),
                "nodes": sorted(set().union(*volume.holders.values())),
                "vdl": volume.vdl,
            }
            for volume_id, volume in sorted(held.items())
        ],
        "file": None if file is None else {"fleet_id": str(file.fleet_id), "nodes": [n.node_id for n in file.nodes]},
    }


async def choose(plane: ControlPlane, number: int) -> None:
    """Puts a version in force; what it does not know of is kept as deleted. Raises UsageError, QuorumLostError."""
    if not plane.is_open:
        await plane.open_store_by(choice=number)
    else:
        chosen = next((v for v in await _versions(plane) if v.number == number), None)
        if chosen is None or chosen.fleet is None:
            raise UsageError(f"version {number} cannot be used: {chosen.problem if chosen else 'there is none'}")
        fleet = chosen.fleet
        await plane.commit(lambda now: taken_back(now, fleet, plane.config.graveyard_s))
    plane.events.note(EventKind.STATE, "control", f"version {number} of the control state was put in force by hand")


async def rebuild(plane: ControlPlane, free_ports: Callable[[Fleet, int], list[int]]) -> list[str]:
    """Makes a state from what the storage nodes hold, since none can be read; the clusters' names.

    Raises UsageError if a state is in force, ConfigurationError if too few nodes run to be sure, QuorumLostError.
    """
    if plane.is_open:
        raise UsageError("a control state is in force: there is nothing to rebuild")
    missing = [n.node_id for n in plane.fleet.nodes if n.node_id not in plane.processes.nodes]
    if missing:
        raise ConfigurationError(f"storage nodes {', '.join(missing)} do not run: what they hold is not known yet")
    fleet = plane.fleet
    for volume_id, held in sorted((await _volumes(plane)).items()):
        if volume_id != fleet.control_volume.volume_id:
            fleet = fleet.with_cluster(await _cluster(plane, fleet, volume_id, held, free_ports))
    numbers = [int(n.node_id.rpartition("-")[2]) for n in fleet.nodes if n.node_id.rpartition("-")[2].isdigit()]
    rebuilt = replace(fleet, last_node_number=max([fleet.last_node_number, *numbers]))
    await plane.open_store_by(rebuilt=rebuilt)
    names = [cluster.name for cluster in rebuilt.clusters]
    told = f"the control state was rebuilt from the storage nodes, with {', '.join(names) or 'no clusters'}"
    plane.events.note(EventKind.STATE, "control", told)
    return names


def taken_back(now: Fleet, chosen: Fleet, kept_s: float) -> Fleet:
    """The clusters of `chosen`, with what must not go back: nodes, and who holds what. Clusters that it does not know
    are kept as deleted, those that were deleted or dropped since are no longer."""
    volumes = {c.volume.volume_id: c.volume for c in (*now.clusters, *(d.cluster for d in now.deleted))}
    clusters = tuple(
        _as_now(replace(c, volume=volumes.get(c.volume.volume_id, c.volume)), now) for c in chosen.clusters
    )
    known = {c.volume.volume_id for c in clusters}
    now_s = time.time()
    unknown = tuple(DeletedCluster(c, now_s, now_s + kept_s) for c in now.clusters if c.volume.volume_id not in known)
    kept = tuple(d for d in now.deleted if d.cluster.volume.volume_id not in known)
    dropped = tuple(v for v in now.dropped_volumes if v.volume_id not in known)
    return replace(now, clusters=clusters, deleted=(*kept, *unknown), dropped_volumes=dropped)


def _as_now(cluster: DBCluster, now: Fleet) -> DBCluster:
    """Which region has the primary does not go back: who writes to the volume, and for which generation."""
    found = next((c for c in now.clusters if c.volume.volume_id == cluster.volume.volume_id), None)
    if found is None or (found.membership is None and cluster.membership is None):
        return cluster
    role = found.writer().role
    instances = tuple(replace(i, role=role) if i.role.traits.owns else i for i in cluster.instances)
    return replace(cluster, succession=found.succession, membership=found.membership, instances=instances)


async def _versions(plane: ControlPlane) -> list[Version]:
    if plane.declared.store is not None:
        return await plane.declared.store.versions()
    volume = plane.fleet.control_volume
    reader = await VolumeReader.open(volume_spec(volume), plane.addresses(), timeout_s=TIMEOUT_S)
    try:
        return await read_versions(reader, volume.page_size) if reader.read_lsn else []
    finally:
        await reader.close()


async def _volumes(plane: ControlPlane) -> dict[UUID, _Held]:
    found: dict[UUID, _Held] = {}
    for node_id, node in sorted(plane.processes.nodes.items()):
        try:
            reply: pb.StateReply = await plane.processes.clients.state(node_id, node.seen.address)
        except AuroraError:
            continue
        for volume in reply.volumes:
            held = found.setdefault(UUID(bytes=volume.volume), _Held(volume.page_size))
            for segment in volume.segments:
                held.holders.setdefault(segment.group, set()).add(node_id)
                told = (segment.members_number, tuple(segment.members), tuple(segment.next_members))
                held.members[segment.group] = max(held.members.get(segment.group, told), told)
                held.vdl = max(held.vdl, segment.vdl)
                held.epoch = max(held.epoch, segment.promised_epoch)
    return found


def _names(fleet: Fleet) -> Mapping[UUID, str]:
    return {
        fleet.control_volume.volume_id: "the control state",
        **{c.volume.volume_id: f"cluster {c.name}" for c in fleet.clusters},
        **{d.cluster.volume.volume_id: f"deleted {d.cluster.name}" for d in fleet.deleted},
        **{v.volume_id: "to be dropped" for v in fleet.dropped_volumes},
    }


async def _cluster(
    plane: ControlPlane, fleet: Fleet, volume_id: UUID, held: _Held, free_ports: Callable[[Fleet, int], list[int]]
) -> DBCluster:
    """A declaration for a volume of which only the nodes know. It is named after the only password file, or anew."""
    groups = tuple(
        Group(group, members or tuple(sorted(held.holders[group])), tuple(sorted(held.holders[group])), following)
        for group, (_, members, following) in sorted(held.members.items())
    )
    volume = VolumeState(volume_id, held.page_size, plane.config.group_bytes, groups, initialised=True)
    reader = await VolumeReader.open(volume_spec(volume), plane.addresses(), timeout_s=TIMEOUT_S)
    try:
        table = await reader.read_file_table()
        found = [(known, entry) for known in adapters() if (entry := table.lookup(known.version_file)) is not None]
        if not found:
            raise ConfigurationError(f"volume {volume_id} holds no data directory of an engine that is known")
        engine, entry = found[0]
        (run,) = await reader.read_pages([PageRange(entry.extents[0], entry.file_id, 0, 1)])
        version = run.pages[: entry.size].decode("ascii", "replace").strip()
    finally:
        await reader.close()
    known = sorted(path.stem for path in (plane.config.data_dir / "passfiles").glob(f"*{engine.passfile_suffix}"))
    name = known[0] if len(known) == 1 and not fleet.clusters else f"recovered-{len(fleet.clusters) + 1}"
    path = report.passfile(plane.config.data_dir, name, engine.name)
    password = await asyncio.to_thread(engine.ensure_passfile, path)
    port, reader_port, writer_port = free_ports(fleet, 3)
    writer = DBInstance(f"{name}-1", Role.WRITER, fleet.azs[0], writer_port)
    return DBCluster(
        name,
        engine.name,
        version,
        "",
        port,
        password,
        volume,
        (writer,),
        created_at_s=time.time(),
        reader_port=reader_port,
        # Of a global cluster's volume the nodes know the newest generation alone; other regions are known to none.
        succession=((0, generation_of(held.epoch)),),
    )
