"""How each action of `reconcile` is carried out. Every one can be cut short at any point and decided anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from aurora_ray import telemetry
from aurora_ray.compute import signals
from aurora_ray.compute.commands import ChangeMembers, UpdateNodes
from aurora_ray.compute.config import HalfMadeVolumeError, InstanceConfig
from aurora_ray.compute.kinds import require_runnable
from aurora_ray.control.decide import (
    backups,
    forks,
    graveyard,
    metering,
    reconcile,
    regional,
    replacement,
    scaling,
    sizing,
)
from aurora_ray.control.decide import promoting as promoted
from aurora_ray.control.decide import serverless as decided
from aurora_ray.control.decide.moving import MoveInstance
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.placement import az_to_start, place_group
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.control.model.state import StorageNode
from aurora_ray.control.model.store import volume_spec
from aurora_ray.control.observe import endpoints
from aurora_ray.control.perform import backing, growth, passfiles, past, promoting, reading, regions, serverless
from aurora_ray.control.perform.ending import end_in_order, end_incarnation
from aurora_ray.control.perform.means import END_TIMEOUT_S, Means, engine_choice
from aurora_ray.control.perform.moving import move_instance
from aurora_ray.control.perform.order import let_the_writer_go_first
from aurora_ray.control.perform.ports import free_ports
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine
from aurora_ray.errors import AuroraError, PortInUseError

if TYPE_CHECKING:
    from uuid import UUID

    from aurora_ray.control.model.state import DBInstance, Fleet

REMOVE_TIMEOUT_S: Final = 10.0
AZ_GRACE_S: Final = 10.0
PORTS_TRIED: Final = 3  # one after the other, before an opening counts as failed

_REPLACEMENTS: Final = telemetry.counter("aurora_control_replacements", "Storage nodes that others took the place of.")


async def perform(means: Means, action: reconcile.Action) -> None:
    """Carries out one action. Raises whatever goes wrong; the caller notes it and the next cycle decides."""
    await _STEPS[type(action)](means, action)


async def _open_control(means: Means, _: reconcile.OpenControl) -> None:
    await means.open_control()


async def _give_up_deleted(means: Means, action: graveyard.GiveUpDeleted) -> None:
    fleet = means.declared.fleet
    await backing.end_backups(fleet.fleet_id, graveyard.find(fleet, action.volume_id), means.say)
    await means.declared.commit(lambda fleet: fleet.without_deleted(action.volume_id))


async def _forget_cluster(means: Means, action: reconcile.ForgetCluster) -> None:
    fleet = await means.declared.commit(
        lambda fleet: graveyard.with_deleted(fleet, action.cluster, means.config.graveyard_s)
    )
    passfiles.follow(means.config.data_dir, fleet, means.say)


# ---- storage nodes


async def _start_node(means: Means, action: reconcile.StartNode) -> None:
    node_id = action.node_id
    node = means.declared.fleet.node(node_id)
    process = await means.processes.runtime.start_node(node, means.config)
    await means.cut_off(node_id, process)
    await means.processes.add_node(node_id, process)
    await means.cut_off(node_id, process)  # a partition that began or ended meanwhile was told to known nodes only
    host = process.info.host
    if node.host != host:
        await means.declared.commit(lambda fleet: fleet.with_node(replace(fleet.node(node_id), host=host)))


async def _tell_nodes(means: Means, action: reconcile.TellNodes) -> None:
    if means.declared.store is not None:
        await means.declared.store.update_nodes(means.addresses())

    async def tell(node_id: str) -> None:
        node = means.processes.nodes.get(node_id)
        if node is not None:
            await means.processes.clients.set_peers(node_id, node.seen.address, dict(action.addresses))
            node.heard_addresses(action.addresses)

    # Each is told whatever becomes of the others; then the first failure is everyone's.
    for result in await asyncio.gather(*(tell(node_id) for node_id in action.node_ids), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _create_segments(means: Means, action: reconcile.CreateSegments) -> None:
    node = means.processes.nodes.get(action.node_id)
    if node is None:
        raise ProcessGoneError(f"storage node {action.node_id} ended meanwhile")
    # One volume may come in several orders, when its groups have different members.
    created: dict[UUID, tuple[int, ...]] = {}
    failure: AuroraError | None = None
    for order in action.segments:
        try:
            if order.origin is not None and not order.empty:
                await means.processes.clients.fork(action.node_id, node.seen.address, order)
            else:
                await means.processes.clients.create_segments(action.node_id, node.seen.address, order)
        except AuroraError as error:  # a fork that cannot be made is no reason to make nothing else
            failure = error
        else:
            created[order.volume_id] = (*created.get(order.volume_id, ()), *order.groups)
    node.made_segments((volume_id, group) for volume_id, groups in created.items() for group in groups)
    await means.declared.commit(lambda fleet: fleet.with_created(action.node_id, created))
    if failure is not None:
        raise failure


async def _drop_volumes(means: Means, action: reconcile.DropVolumes) -> None:
    node = means.processes.nodes.get(action.node_id)
    if node is None:
        return
    given_up = {volume.volume_id for volume in means.declared.fleet.dropped_volumes if volume.given_up}
    for volume_id in action.volume_ids:
        await means.processes.clients.drop_volume(action.node_id, node.seen.address, volume_id, action.why)
        if volume_id in given_up:
            await means.processes.clients.purge_volume(action.node_id, node.seen.address, volume_id)
    gone = set(action.volume_ids)
    node.dropped(gone)
    await means.declared.commit(lambda fleet: fleet.without_dropped(action.node_id, gone))


# ---- replacing storage nodes


async def _replace_node(means: Means, action: replacement.ReplaceNode) -> None:
    def change(fleet: Fleet) -> Fleet:
        return fleet if fleet.replacements() else fleet.with_replacement(action.node_id)

    fleet = await means.declared.commit(change)
    if new := fleet.replacements().get(action.node_id):
        _REPLACEMENTS.inc()
        told = f"{new} takes the place of storage node {action.node_id}: {action.why}"
        means.say(told)
        means.events.note(EventKind.REPLACEMENT, action.node_id, told)


async def _cancel_replacement(means: Means, action: replacement.CancelReplacement) -> None:
    await means.declared.commit(lambda fleet: fleet.without_replacement(action.node_id))


async def _change_members(means: Means, action: replacement.ChangeMembers) -> None:
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None:
        placements = await instance.process.do(ChangeMembers(action.placement, action.filled))
        instance.changed_members(placements)
    elif not action.instance_id and action.volume_id != means.declared.fleet.control_volume.volume_id:
        await past.change_members(means, action)
    elif not action.instance_id and means.declared.store is not None:
        await means.declared.store.update_nodes(means.addresses())
        await means.declared.store.change_members(action.placement, action.filled)
    # Who came in by this step has made its copy: that shall be known before the step is noted.
    coming = set(action.placement.all_node_ids).difference(action.placement.node_ids)
    await asyncio.gather(*(means.processes.look_at_node(node_id) for node_id in coming))


async def _note_placements(means: Means, action: replacement.NotePlacements) -> None:
    await means.declared.commit(lambda fleet: fleet.with_placements(action.volume_id, action.placements))


async def _remove_node(means: Means, action: replacement.RemoveNode) -> None:
    node_id = action.node_id
    known = means.processes.nodes.get(node_id)
    node = next((n for n in means.declared.fleet.nodes if n.node_id == node_id), StorageNode(node_id, ""))
    # One whose start had no answer runs all the same.
    running = known.process if known is not None else await means.processes.runtime.find_node(node)
    if running is not None:
        node = replace(node, host=running.info.host)
        try:
            await running.stop(destroy=True, timeout_s=REMOVE_TIMEOUT_S)
        except (AuroraError, TimeoutError):
            with contextlib.suppress(AuroraError, TimeoutError):  # one that stands still has not heard of it
                await running.signal(signals.KILL, None)
    with contextlib.suppress(AuroraError, TimeoutError):  # a machine that is gone has taken the directory along
        await means.processes.runtime.wipe_node(node, means.config)
    await means.declared.commit(lambda fleet: fleet.without_node(node_id))


# ---- instances


async def _start_instance(means: Means, action: reconcile.StartInstance) -> None:
    declared = means.declared.fleet.cluster(action.cluster).instance(action.instance_id)
    require_runnable(declared.role, declared.instance_id)
    declared = await _placed(means, action.cluster, declared)
    choice = engine_choice(means.config, means.declared.fleet.cluster(action.cluster))
    means.processes.unsure.add(action.instance_id)  # until it answers: if it goes meanwhile, it is looked for
    process = await means.processes.runtime.start_instance(action.instance_id, declared.az, choice)
    await means.processes.add_instance(action.instance_id, process)


async def _placed(means: Means, cluster: str, declared: DBInstance) -> DBInstance:
    """The instance, moved to another AZ if the storage nodes of its own are gone."""
    azs = {node.node_id: node.az for node in means.declared.fleet.nodes}
    running = [azs[n] for n in means.processes.nodes if n in azs]
    az = az_to_start(declared.az, means.declared.fleet.azs, running, _azs_that_ran(means, azs))
    if az == declared.az:
        return declared
    means.say(f"AZ {declared.az} is gone: {declared.instance_id} moves to {az}")

    def change(fleet: Fleet) -> Fleet:
        return fleet.with_instance(cluster, replace(fleet.cluster(cluster).instance(declared.instance_id), az=az))

    fleet = await means.declared.commit(change)
    return fleet.cluster(cluster).instance(declared.instance_id)


def _azs_that_ran(means: Means, azs: Mapping[str, str]) -> set[str]:
    """AZs whose nodes would run if they were there: those of nodes seen to run, and, once a control plane that has just
    begun has given them time to come up, those of nodes that ran under an earlier one."""
    ran = {azs[node_id] for node_id in means.processes.nodes_seen if node_id in azs}
    if means.runs_for_s() >= AZ_GRACE_S:
        ran |= {node.az for node in means.declared.fleet.nodes if node.host}
    return ran


async def _open_instance(means: Means, action: reconcile.OpenInstance) -> None:
    for left in reversed(range(PORTS_TRIED)):
        try:
            await _try_to_open(means, action)
        except PortInUseError:  # it has another one by now, and somebody may wait
            if not left:
                raise
        else:
            return


async def _try_to_open(means: Means, action: reconcile.OpenInstance) -> None:
    instance = means.processes.instances.get(action.instance_id)
    if instance is None:
        raise ProcessGoneError(f"the process of {action.instance_id} ended meanwhile")
    await let_the_writer_go_first(means.declared, means.processes, action.cluster, action.instance_id)
    machine = this_machine()
    await means.declared.commit(lambda fleet: sizing.to_open(fleet, action.cluster, action.instance_id, machine))
    config = _config_of(means, action)
    await means.processes.runtime.have_spare(
        action.instance_id, config.az, config.engine, wanted=config.role.traits.writes
    )
    source = tuple(sorted((n.node_id, n.address) for n in config.source.nodes)) if config.source is not None else ()
    instance.opening(means.processes.told_addresses(), config.role, source)
    try:
        opened = await instance.process.open(config)
        instance.has_opened(opened)
    except Exception as error:
        if await means.processes.settle(action.instance_id, instance, str(error)) is InstancePhase.AVAILABLE:
            return  # only the answer was lost
        if isinstance(error, HalfMadeVolumeError):
            await _replace_volume(means, action.cluster, config.volume.volume_id)
        elif isinstance(error, PortInUseError):
            await _replace_port(means, action, config.port)
        raise
    await means.processes.settle(action.instance_id, instance)
    for trouble in opened.troubles:
        means.say(f"{action.instance_id}: {trouble.sentence}")
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in opened.stages_s.items())
    where = f"in epoch {opened.epoch}" if config.role.traits.owns else f"from LSN {opened.vdl:,} on"
    told = f"{config.role} {action.instance_id} is available {where} ({stages})"
    means.say(told)
    if config.role.traits.reads:
        means.events.note(EventKind.READER, action.instance_id, told, action.cluster)


async def _note_repaired(means: Means, action: reconcile.NoteRepaired) -> None:
    def change(fleet: Fleet) -> Fleet:
        cluster = next((c for c in fleet.clusters if c.name == action.cluster), None)
        if cluster is None:
            return fleet
        return fleet.with_cluster(replace(cluster, repairs=tuple(r for r in cluster.repairs if r not in action.made)))

    await means.declared.commit(change)


async def _note_initialised(means: Means, action: reconcile.NoteInitialised) -> None:
    def change(fleet: Fleet) -> Fleet:
        known = any(volume.volume_id == action.volume_id for volume in fleet.volumes())
        return fleet.with_initialised(action.volume_id) if known else fleet

    await means.declared.commit(change)


def _config_of(means: Means, action: reconcile.OpenInstance) -> InstanceConfig:
    cluster = means.declared.fleet.cluster(action.cluster)
    declared = cluster.instance(action.instance_id)
    require_runnable(declared.role, declared.instance_id)
    writes, known = declared.role.traits.writes, cluster.membership
    source = means.regions.source(cluster) if declared.role.traits.copies else None
    return InstanceConfig(
        cluster=cluster.name,
        instance_id=declared.instance_id,
        az=declared.az,
        role=declared.role,
        volume=volume_spec(cluster.volume),
        nodes=means.addresses(),
        engine=engine_choice(means.config, cluster),
        host=means.config.listen_host,
        port=declared.port,
        superuser_password=cluster.superuser_password,
        initialise=action.initialise and writes,
        cache_bytes=cluster.cache_bytes or means.config.cache_bytes,
        health=means.config.health_rules,
        open_timeout_s=means.config.stuck_after_s,
        parameters=cluster.parameters,
        repairs=cluster.repairs if writes else (),
        groups_max=cluster.volume.groups_max(means.config.volume_limit_bytes),
        memory_bytes=declared.memory_bytes,
        backup=backups.order_of(means.declared.fleet, cluster) if declared.role.traits.archives else None,
        restore=backing.restore_order(cluster) if writes else None,
        capacity=serverless.order_to_open(means, cluster, declared),
        turns=cluster.succession,
        first_lsn=known.first_lsn if known is not None else 0,
        source=source,
        goes_on=means.config.promote_in_place and promoted.concerns(cluster, declared),
        holds_commits=writes and known is not None and known.holds_commits,
    )


async def _replace_volume(means: Means, cluster_name: str, volume_id: UUID) -> None:
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

    fleet = await means.declared.commit(change)
    if fleet.cluster(cluster_name).volume.volume_id != volume_id:
        means.say(f"the volume of {cluster_name} was left half-made and is replaced by a new one")


async def _replace_port(means: Means, action: reconcile.OpenInstance, taken: int) -> None:
    """Somebody else took the port while no engine listened on it. Clients know the endpoint's, so another will do."""

    def change(fleet: Fleet) -> Fleet:
        declared = fleet.cluster(action.cluster).instance(action.instance_id)
        if declared.port != taken:
            return fleet
        (port,) = free_ports(fleet, means.config.listen_host, 1, after=taken)
        return fleet.with_instance(action.cluster, replace(declared, port=port))

    fleet = await means.declared.commit(change)
    port = fleet.cluster(action.cluster).instance(action.instance_id).port
    moved = f"port {taken} of {action.instance_id} is in use by something else; it listens on {port} from now on"
    means.say(moved)
    means.events.note(EventKind.CLUSTER, action.instance_id, moved, action.cluster)


async def _tell_instance(means: Means, action: reconcile.TellInstance) -> None:
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None:
        await instance.process.do(UpdateNodes(means.addresses()))
        instance.heard_addresses(action.addresses)


async def _resize(means: Means, action: sizing.ResizeInstance) -> None:
    """The loop opens it again."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None and instance.seen.phase is InstancePhase.AVAILABLE:
        await end_in_order(instance, means.notify, END_TIMEOUT_S)


async def _change_role(means: Means, action: reconcile.ChangeRole) -> None:
    """The loop opens it again."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None and instance.seen.phase is InstancePhase.AVAILABLE:
        await end_incarnation(instance, means.notify, END_TIMEOUT_S, f"it is going to be a {action.role}")


async def _promote_instance(means: Means, action: promoted.PromoteInstance) -> None:
    opening = reconcile.OpenInstance(action.why, action.cluster, action.instance_id, initialise=False)
    await promoting.promote_instance(means, action, _config_of(means, opening))


async def _stop_instance(means: Means, action: reconcile.StopInstance) -> None:
    instance = means.processes.instances.get(action.instance_id)
    if instance is None:  # its start had no answer
        process = await means.processes.runtime.find_instance(action.instance_id)
    else:
        instance.stopping()
        process = instance.process
    if process is not None:
        await process.end(fast=False, destroy=True, timeout_s=END_TIMEOUT_S)
    means.processes.instances.pop(action.instance_id, None)
    means.processes.unsure.discard(action.instance_id)


async def _move_endpoint(means: Means, action: endpoints.MoveEndpoint) -> None:
    """Somebody else took the port while the fleet was down. Clients find the new one in `aurora status`."""
    before = means.declared.fleet.cluster(action.cluster).endpoint_ports().get(action.endpoint, 0)

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(action.cluster)
        (port,) = free_ports(fleet, means.config.listen_host, 1, after=before)
        if cluster.endpoint_ports().get(action.endpoint, 0) != before:
            return fleet
        return fleet.with_cluster(cluster.with_endpoint_port(action.endpoint, port))

    after = (await means.declared.commit(change)).cluster(action.cluster).endpoint_ports().get(action.endpoint, 0)
    told = (
        f"port {before} of its {action.endpoint} endpoint is in use by something else: clients find it at {after} now"
    )
    means.say(f"{action.cluster}: {told}")
    means.events.note(EventKind.CLUSTER, action.cluster, told, action.cluster)


_STEPS: Final[Mapping[type[reconcile.Action], Callable[[Means, Any], Awaitable[None]]]] = {
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
    reconcile.ChangeRole: _change_role,
    promoted.MakeWriter: promoting.make_writer,
    promoted.PromoteInstance: _promote_instance,
    reconcile.AllocateGroup: growth.allocate_group,
    reconcile.AddGroup: growth.add_group,
    reconcile.ForgetCluster: _forget_cluster,
    endpoints.MoveEndpoint: _move_endpoint,
    graveyard.GiveUpDeleted: _give_up_deleted,
    backups.ReopenBackup: backing.reopen_backup,
    forks.FollowVolume: past.follow_volume,
    forks.KeepHistory: past.keep_history,
    forks.ForgetPast: past.forget_past,
    forks.EndTemporary: past.end_temporary,
    regional.StepDown: regions.step_down,
    regional.Follow: regions.follow,
    regional.Drain: regions.drain_primary,
    regional.AskToMakeWay: regions.ask_to_make_way,
    regional.NoteEnd: regions.note_end,
    regional.NoteReached: regions.note_reached,
    regional.TakeOver: regions.take_over,
    regional.NoteRefusal: regions.note_refusal,
    regional.LeaseAgain: regions.lease_again,
    regional.Promote: regions.promote_copy,
    regional.GiveUpTurn: regions.give_up_turn,
    regional.NoteRegions: regions.note_regions,
    regional.NoteCopied: regions.note_copied,
    regional.TellSource: regions.tell_source,
    sizing.ResizeInstance: _resize,
    scaling.ScaleReaders: reading.scale_readers,
    scaling.RemoveDrained: reading.remove_drained,
    reconcile.PauseInstance: serverless.pause_instance,
    decided.ScaleInstance: serverless.scale_instance,
    decided.LookAtPools: serverless.look_at_pools,
    decided.FitPool: serverless.fit_pool,
    MoveInstance: move_instance,
    metering.SaveUsage: serverless.save_usage,
    decided.PauseCluster: serverless.pause_cluster,
    decided.ResumeCluster: serverless.resume_cluster,
    replacement.ReplaceNode: _replace_node,
    replacement.CancelReplacement: _cancel_replacement,
    replacement.ChangeMembers: _change_members,
    replacement.NotePlacements: _note_placements,
    replacement.RemoveNode: _remove_node,
}
