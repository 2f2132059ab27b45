"""How each action of `reconcile` is carried out. Every one can be cut short at any point and decided anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from aurora_ray import telemetry
from aurora_ray.compute import signals
from aurora_ray.compute.config import EngineChoice, HalfMadeVolumeError, WriterConfig
from aurora_ray.control.decide import reconcile, replacement
from aurora_ray.control.decide.placement import az_to_start, place_group
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.control.model.state import Role, StorageNode
from aurora_ray.control.model.store import volume_spec
from aurora_ray.control.perform import endpoints, graveyard, sizing
from aurora_ray.control.perform.ports import free_ports
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine
from aurora_ray.errors import AuroraError, PortInUseError, UnsupportedRoleError
from aurora_ray.volume.spec import GroupPlacement

if TYPE_CHECKING:
    from uuid import UUID

    from aurora_ray.control.model.state import DBCluster, DBInstance, Fleet
    from aurora_ray.control.plane import ControlPlane

END_TIMEOUT_S: Final = 90.0
REMOVE_TIMEOUT_S: Final = 10.0
AZ_GRACE_S: Final = 10.0

_REPLACEMENTS: Final = telemetry.counter("aurora_control_replacements", "Storage nodes that others took the place of.")


async def perform(plane: ControlPlane, action: reconcile.Action) -> None:
    """Carries out one action. Raises whatever goes wrong; the caller notes it and the next cycle decides."""
    await _STEPS[type(action)](plane, action)


async def _open_control(plane: ControlPlane, _: reconcile.OpenControl) -> None:
    await plane.open_store()


async def _forget_cluster(plane: ControlPlane, action: reconcile.ForgetCluster) -> None:
    await plane.commit(lambda fleet: graveyard.with_deleted(fleet, action.cluster, plane.config.graveyard_s))


# ---- storage nodes


async def _start_node(plane: ControlPlane, action: reconcile.StartNode) -> None:
    node_id = action.node_id
    node = plane.fleet.node(node_id)
    process = await plane.processes.runtime.start_node(node, plane.config)
    await plane.chaos.cut_off(node_id, process)
    await plane.processes.add_node(node_id, process)
    host = process.info.host
    if node.host != host:
        await plane.commit(lambda fleet: fleet.with_node(replace(fleet.node(node_id), host=host)))


async def _tell_nodes(plane: ControlPlane, action: reconcile.TellNodes) -> None:
    if plane.store is not None:
        await plane.store.update_nodes(plane.addresses())

    async def tell(node_id: str) -> None:
        node = plane.processes.nodes.get(node_id)
        if node is not None:
            await plane.processes.clients.set_peers(node_id, node.seen.address, dict(action.addresses))
            node.seen = replace(node.seen, told=action.addresses)

    # Each is told whatever becomes of the others; then the first failure is everyone's.
    for result in await asyncio.gather(*(tell(node_id) for node_id in action.node_ids), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _create_segments(plane: ControlPlane, action: reconcile.CreateSegments) -> None:
    node = plane.processes.nodes.get(action.node_id)
    if node is None:
        raise ProcessGoneError(f"storage node {action.node_id} ended meanwhile")
    for order in action.segments:
        await plane.processes.clients.create_segments(action.node_id, node.seen.address, order)
    # One volume may come in several orders, when its groups have different members.
    created: dict[UUID, tuple[int, ...]] = {}
    for order in action.segments:
        created[order.volume_id] = (*created.get(order.volume_id, ()), *order.groups)
    new = {(volume_id, group) for volume_id, groups in created.items() for group in groups}
    node.seen = replace(node.seen, segments=node.seen.segments | new)
    await plane.commit(lambda fleet: fleet.with_created(action.node_id, created))


async def _drop_volumes(plane: ControlPlane, action: reconcile.DropVolumes) -> None:
    node = plane.processes.nodes.get(action.node_id)
    if node is None:
        return
    given_up = {volume.volume_id for volume in plane.fleet.dropped_volumes if volume.given_up}
    for volume_id in action.volume_ids:
        await plane.processes.clients.drop_volume(action.node_id, node.seen.address, volume_id, action.why)
        if volume_id in given_up:
            await plane.processes.clients.purge_volume(action.node_id, node.seen.address, volume_id)
    gone = set(action.volume_ids)
    node.seen = replace(node.seen, segments=frozenset(s for s in node.seen.segments if s[0] not in gone))
    await plane.commit(lambda fleet: fleet.without_dropped(action.node_id, gone))


# ---- replacing storage nodes


async def _replace_node(plane: ControlPlane, action: replacement.ReplaceNode) -> None:
    def change(fleet: Fleet) -> Fleet:
        return fleet if fleet.replacements() else fleet.with_replacement(action.node_id)

    fleet = await plane.commit(change)
    if new := fleet.replacements().get(action.node_id):
        _REPLACEMENTS.inc()
        told = f"{new} takes the place of storage node {action.node_id}: {action.why}"
        plane.say(told)
        plane.events.note(EventKind.REPLACEMENT, action.node_id, told)


async def _cancel_replacement(plane: ControlPlane, action: replacement.CancelReplacement) -> None:
    await plane.commit(lambda fleet: fleet.without_replacement(action.node_id))


async def _change_members(plane: ControlPlane, action: replacement.ChangeMembers) -> None:
    instance = plane.processes.instances.get(action.instance_id)
    if instance is not None:
        placements = await instance.process.change_members(action.placement, action.filled)
        instance.seen = replace(instance.seen, placements=placements)
    elif not action.instance_id and plane.store is not None:
        await plane.store.update_nodes(plane.addresses())
        await plane.store.change_members(action.placement, action.filled)
    # Who came in by this step has made its copy: that shall be known before the step is noted.
    coming = set(action.placement.all_node_ids).difference(action.placement.node_ids)
    await asyncio.gather(*(plane.processes.look_at_node(node_id) for node_id in coming))


async def _note_placements(plane: ControlPlane, action: replacement.NotePlacements) -> None:
    await plane.commit(lambda fleet: fleet.with_placements(action.volume_id, action.placements))


async def _remove_node(plane: ControlPlane, action: replacement.RemoveNode) -> None:
    node_id = action.node_id
    running = plane.processes.nodes.get(node_id)
    node = next((n for n in plane.fleet.nodes if n.node_id == node_id), StorageNode(node_id, ""))
    if running is not None:
        node = replace(node, host=running.process.info.host)
        try:
            await running.process.stop(destroy=True, timeout_s=REMOVE_TIMEOUT_S)
        except (AuroraError, TimeoutError):
            with contextlib.suppress(AuroraError, TimeoutError):  # one that stands still has not heard of it
                await running.process.signal(signals.KILL, None)
    with contextlib.suppress(AuroraError, TimeoutError):  # a machine that is gone has taken the directory along
        await plane.processes.runtime.wipe_node(node, plane.config)
    await plane.commit(lambda fleet: fleet.without_node(node_id))


# ---- instances


async def _start_instance(plane: ControlPlane, action: reconcile.StartInstance) -> None:
    declared = _declared(plane.fleet, action.cluster, action.instance_id)
    _require_writer(declared)
    declared = await _placed(plane, action.cluster, declared)
    choice = engine_choice(plane, plane.fleet.cluster(action.cluster))
    process = await plane.processes.runtime.start_instance(action.instance_id, declared.az, choice)
    await plane.processes.add_instance(action.instance_id, process)


async def _placed(plane: ControlPlane, cluster: str, declared: DBInstance) -> DBInstance:
    """The instance, moved to another AZ if the storage nodes of its own are gone."""
    azs = {node.node_id: node.az for node in plane.fleet.nodes}
    running = [azs[n] for n in plane.processes.nodes if n in azs]
    az = az_to_start(declared.az, plane.fleet.azs, running, _azs_that_ran(plane, azs))
    if az == declared.az:
        return declared
    plane.say(f"AZ {declared.az} is gone: {declared.instance_id} moves to {az}")
    fleet = await plane.commit(lambda fleet: fleet.with_instance(cluster, replace(declared, az=az)))
    return _declared(fleet, cluster, declared.instance_id)


def _azs_that_ran(plane: ControlPlane, azs: Mapping[str, str]) -> set[str]:
    """AZs whose nodes would run if they were there: those of nodes seen to run, and, once a control plane that has just
    begun has given them time to come up, those of nodes that ran under an earlier one."""
    ran = {azs[node_id] for node_id in plane.processes.nodes_seen if node_id in azs}
    if plane.runs_for_s >= AZ_GRACE_S:
        ran |= {node.az for node in plane.fleet.nodes if node.host}
    return ran


async def _open_instance(plane: ControlPlane, action: reconcile.OpenInstance) -> None:
    instance = plane.processes.instances.get(action.instance_id)
    if instance is None:
        raise ProcessGoneError(f"the process of {action.instance_id} ended meanwhile")
    machine = this_machine()
    await plane.commit(lambda fleet: sizing.to_open(fleet, action.cluster, action.instance_id, machine))
    config = _writer_config(plane, action)
    instance.seen = InstanceSeen(InstancePhase.OPENING, told=plane.observe().addresses())
    try:
        instance.opened = opened = await instance.process.open(config)
    except Exception as error:
        if await plane.processes.settle(action.instance_id, instance, str(error)) is InstancePhase.AVAILABLE:
            return  # only the answer was lost
        if isinstance(error, HalfMadeVolumeError):
            await _replace_volume(plane, action.cluster, config.volume.volume_id)
        elif isinstance(error, PortInUseError):
            await _replace_port(plane, action, config.port)
        raise
    await plane.processes.settle(action.instance_id, instance)
    for trouble in opened.troubles:
        plane.say(f"{action.instance_id}: {trouble.sentence}")
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in opened.stages_s.items())
    plane.say(f"{action.instance_id} is available in epoch {opened.epoch} ({stages})")


async def _note_repaired(plane: ControlPlane, action: reconcile.NoteRepaired) -> None:
    def change(fleet: Fleet) -> Fleet:
        cluster = next((c for c in fleet.clusters if c.name == action.cluster), None)
        if cluster is None:
            return fleet
        return fleet.with_cluster(replace(cluster, repairs=tuple(r for r in cluster.repairs if r not in action.made)))

    await plane.commit(change)


async def _note_initialised(plane: ControlPlane, action: reconcile.NoteInitialised) -> None:
    def change(fleet: Fleet) -> Fleet:
        known = any(volume.volume_id == action.volume_id for volume in fleet.volumes())
        return fleet.with_initialised(action.volume_id) if known else fleet

    await plane.commit(change)


def _writer_config(plane: ControlPlane, action: reconcile.OpenInstance) -> WriterConfig:
    cluster = plane.fleet.cluster(action.cluster)
    declared = _declared(plane.fleet, action.cluster, action.instance_id)
    _require_writer(declared)
    return WriterConfig(
        cluster=cluster.name,
        instance_id=declared.instance_id,
        az=declared.az,
        volume=volume_spec(cluster.volume),
        nodes=plane.addresses(),
        engine=engine_choice(plane, cluster),
        host=plane.config.listen_host,
        port=declared.port,
        superuser_password=cluster.superuser_password,
        initialise=action.initialise,
        cache_bytes=cluster.cache_bytes or plane.config.cache_bytes,
        health=plane.config.health_rules,
        open_timeout_s=plane.config.stuck_after_s,
        parameters=cluster.parameters,
        repairs=cluster.repairs,
        memory_bytes=declared.memory_bytes,
    )


def _require_writer(declared: DBInstance) -> None:
    """Raises UnsupportedRoleError for what would seal out the real writer if it were opened like one."""
    if declared.role is not Role.WRITER:
        raise UnsupportedRoleError(f"{declared.instance_id} is a {declared.role}, and nothing can run one yet")


def engine_choice(plane: ControlPlane, cluster: DBCluster) -> EngineChoice:
    """The engine of a cluster, as its instances are told."""
    return EngineChoice(
        engine=cluster.engine,
        version=cluster.engine_version,
        data_dir=plane.config.data_dir,
        engine_user=plane.config.engine_user,
        bin_dir=Path(cluster.bin_dir) if cluster.bin_dir else None,
    )


async def _replace_volume(plane: ControlPlane, cluster_name: str, volume_id: UUID) -> None:
    """A volume whose initialisation was cut short, as the instance found in it, is dropped, and a new one takes its
    place. One that anybody ever served on is not: it is noted as such before anything else is done with it."""

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(cluster_name)
        if cluster.volume.volume_id != volume_id or cluster.volume.initialised:
            return fleet
        groups = (place_group(0, fleet.azs, fleet.nodes, fleet.volumes()),)
        fresh = replace(cluster.volume, volume_id=uuid4(), groups=groups)
        changed = fleet.with_cluster(replace(cluster, volume=fresh))
        return replace(changed, dropped_volumes=(*changed.dropped_volumes, cluster.volume))

    fleet = await plane.commit(change)
    if fleet.cluster(cluster_name).volume.volume_id != volume_id:
        plane.say(f"the volume of {cluster_name} was left half-made and is replaced by a new one")


async def _replace_port(plane: ControlPlane, action: reconcile.OpenInstance, taken: int) -> None:
    """Somebody else took the port while no engine listened on it. Clients know the endpoint's, so another will do."""

    def change(fleet: Fleet) -> Fleet:
        declared = _declared(fleet, action.cluster, action.instance_id)
        if declared.port != taken:
            return fleet
        (port,) = free_ports(fleet, plane.config.listen_host, 1, after=taken)
        return fleet.with_instance(action.cluster, replace(declared, port=port))

    fleet = await plane.commit(change)
    port = _declared(fleet, action.cluster, action.instance_id).port
    plane.say(f"port {taken} of {action.instance_id} is in use by something else; it listens on {port} from now on")


async def _tell_instance(plane: ControlPlane, action: reconcile.TellInstance) -> None:
    instance = plane.processes.instances.get(action.instance_id)
    if instance is not None:
        await instance.process.update_nodes(plane.addresses())
        instance.seen = replace(instance.seen, told=action.addresses)


async def _stop_instance(plane: ControlPlane, action: reconcile.StopInstance) -> None:
    instance = plane.processes.instances.get(action.instance_id)
    if instance is not None:
        instance.seen = replace(instance.seen, phase=InstancePhase.STOPPING)
        await instance.process.end(fast=False, destroy=True, timeout_s=END_TIMEOUT_S)
        plane.processes.instances.pop(action.instance_id, None)


async def _move_endpoint(plane: ControlPlane, action: endpoints.MoveEndpoint) -> None:
    """Somebody else took the port while the fleet was down. Clients find the new one in `aurora status`."""
    before = plane.fleet.cluster(action.cluster).endpoint_port(action.role)

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(action.cluster)
        (port,) = free_ports(fleet, plane.config.listen_host, 1, after=before)
        if cluster.endpoint_port(action.role) != before:
            return fleet
        return fleet.with_cluster(cluster.with_endpoint_port(action.role, port))

    after = (await plane.commit(change)).cluster(action.cluster).endpoint_port(action.role)
    told = f"port {before} of its {action.role} endpoint is in use by something else: clients find it at {after} now"
    plane.say(f"{action.cluster}: {told}")
    plane.events.note(EventKind.CLUSTER, action.cluster, told, action.cluster)


# ---- growth


async def _allocate_group(plane: ControlPlane, action: reconcile.AllocateGroup) -> None:
    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(action.cluster)
        if len(cluster.volume.groups) != action.group:
            return fleet
        group = place_group(action.group, fleet.azs, fleet.nodes, fleet.volumes())
        return fleet.with_volume(replace(cluster.volume, groups=(*cluster.volume.groups, group)))

    await plane.commit(change)


async def _add_group(plane: ControlPlane, action: reconcile.AddGroup) -> None:
    instance = plane.processes.instances.get(action.instance_id)
    if instance is not None:
        await instance.process.add_group(GroupPlacement(action.group.group, action.group.node_ids))
        # How much is free is only known again at the next look; until then it must not cause another growth.
        instance.seen = replace(instance.seen, groups=instance.seen.groups | {action.group.group}, free_bytes=None)


def _declared(fleet: Fleet, cluster: str, instance_id: str) -> DBInstance:
    return next(i for i in fleet.cluster(cluster).instances if i.instance_id == instance_id)


_STEPS: Final[Mapping[type[reconcile.Action], Callable[[ControlPlane, Any], Awaitable[None]]]] = {
    reconcile.StartNode: _start_node,
    reconcile.TellNodes: _tell_nodes,
    reconcile.CreateSegments: _create_segments,
    reconcile.DropVolumes: _drop_volumes,
    reconcile.OpenControl: _open_control,
    reconcile.StartInstance: _start_instance,
    reconcile.OpenInstance: _open_instance,
    reconcile.NoteInitialised: _note_initialised,
    reconcile.NoteRepaired: _note_repaired,
    reconcile.TellInstance: _tell_instance,
    reconcile.StopInstance: _stop_instance,
    reconcile.AllocateGroup: _allocate_group,
    reconcile.AddGroup: _add_group,
    reconcile.ForgetCluster: _forget_cluster,
    endpoints.MoveEndpoint: _move_endpoint,
    graveyard.GiveUpDeleted: graveyard.give_up,
    sizing.ResizeInstance: sizing.resize,
    replacement.ReplaceNode: _replace_node,
    replacement.CancelReplacement: _cancel_replacement,
    replacement.ChangeMembers: _change_members,
    replacement.NotePlacements: _note_placements,
    replacement.RemoveNode: _remove_node,
}
