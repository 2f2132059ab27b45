"""Global clusters, by a user's word and by other regions': who belongs to one, and which region is the primary.

Each verb changes this region's declared state alone; the loop does the rest (`decide/regional.py`). A verb for another
region is handed on to it. Verbs may be asked for again after any failure, and then go on.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from aurora_ray.compute.commands import FirstWrite
from aurora_ray.compute.role import Role
from aurora_ray.control.api import moves, readers
from aurora_ray.control.decide import sizing
from aurora_ray.control.decide.readers import DEFAULT_TIER, with_readers
from aurora_ray.control.model.attempt import check_hope
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.placement import place_group, place_instance
from aurora_ray.control.model.regional import SEALED, Membership, Peer, turns_from_plain
from aurora_ray.control.model.sealing import seal, unseal
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet, VolumeState
from aurora_ray.control.perform import passfiles
from aurora_ray.control.perform.ports import before_those_of, free_ports
from aurora_ray.control.perform.regions import made_way, with_owner
from aurora_ray.control.report import status as report
from aurora_ray.control.report.events import EventKind
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.registry import adapter
from aurora_ray.errors import (
    UNDECODABLE,
    AuroraError,
    MalformedError,
    NodeUnreachableError,
    QuorumLostError,
    UsageError,
)
from aurora_ray.replication.residency import Policy, Purpose
from aurora_ray.replication.succession import next_generation
from aurora_ray.replication.turnover import Turnover, Way
from aurora_ray.rpc.admission import OURS, Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.control.plane import ControlPlane

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
FIRST_WRITE_WITHIN_S: Final = 10.0
SLACK_S: Final = 10.0


# ---- who belongs to it


async def create(plane: ControlPlane, name: str, primary: str) -> dict[str, Any]:
    """Declares that a cluster is the primary of a new global cluster. Raises UsageError."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name: lower-case letters, digits and dashes, a letter first")

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(primary)
        known = cluster.membership
        if known is not None and known.name == name:
            return fleet
        if known is not None:
            raise UsageError(f"cluster {primary!r} is part of the global cluster {known.name!r} already")
        if any(c.membership is not None and c.membership.name == name for c in fleet.clusters):
            raise UsageError(f"there is a global cluster {name!r} already")
        if cluster.phase is ClusterPhase.DELETING or cluster.until_s:
            raise UsageError(f"cluster {primary!r} is going to be deleted: it cannot be a global one")
        if not cluster.volume.initialised:
            raise UsageError(f"cluster {primary!r} is being created: wait until it is available")
        return fleet.with_cluster(replace(cluster, membership=Membership(name, 0, fleet.region)))

    await plane.commit(change)
    _note(plane, primary, f"{primary} is the primary of the global cluster {name}")
    return {"global": name, "cluster": primary, "primary": plane.fleet.region}


async def invite(plane: ControlPlane, name: str, guest: Mapping[str, Any]) -> dict[str, Any]:
    """Declares that another region belongs to the global cluster; what that region has to be told. `guest`: `region`,
    `fleet_id`, `address` and `data_dir` of its control plane, and its secret. Raises UsageError, QuorumLostError."""
    cluster, known = member(plane, name)
    if cluster.is_secondary:
        raise UsageError(f"{plane.fleet.region} is a secondary region of {name}: regions are added in {known.primary}")
    region, fleet_id = str(guest["region"]), str(guest["fleet_id"])
    if fleet_id == str(plane.fleet.fleet_id):
        raise UsageError(f"that is the fleet which {name} is in already: another region has a fleet of its own")
    if region == plane.fleet.region:
        raise UsageError(f"{name} is in region {region} already")
    there = next((peer for peer in known.peers if peer.region == region), None)
    if there is None:
        known.require_no_lease("added")
    if there is not None and there.fleet_id != fleet_id:
        raise UsageError(f"another fleet in region {region} belongs to {name}: `aurora global remove-region` it first")
    slot = there.slot if there is not None else known.free_slot()
    secret = Secret.from_text(unseal(SEALED, str(guest["secret"]))).to_text()
    peer = Peer(region, slot, fleet_id, str(guest["address"]), str(guest["data_dir"]), secret)
    moves.require(plane.config, cluster.residency, name, Purpose.ADD_REGION, [(plane.fleet.region, region)])
    lsn = await _present(plane, cluster)

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(global_cluster(fleet, name).name)
        assert cluster.membership is not None  # noqa: S101 - it was looked up by it
        return fleet.with_cluster(replace(cluster, membership=cluster.membership.with_peer(peer)))

    cluster = (await plane.commit(change)).cluster(cluster.name)
    _note(plane, cluster.name, f"region {region} was added to {name}")
    own = Peer(
        plane.fleet.region,
        known.slot,
        str(plane.fleet.fleet_id),
        plane.regions.own_address,
        str(plane.config.data_dir),
        OURS.secret.to_text(),
    )
    peers = [p for p in cluster.membership.peers if p.region != region] if cluster.membership is not None else []
    return {
        "global": name,
        "cluster": cluster.name,
        "slot": slot,
        "primary": plane.fleet.region,
        "peers": [_peer_plain(p, Secret.from_text(secret)) for p in (own, *peers)],
        "engine": cluster.engine,
        "engine_version": cluster.engine_version,
        "password": seal(SEALED, cluster.superuser_password, Secret.from_text(secret)),
        "parameters": [list(each) for each in cluster.parameters],
        "page_size": cluster.volume.page_size,
        "group_bytes": cluster.volume.group_bytes,
        "groups": len(cluster.volume.groups),
        "turns": [list(turn) for turn in cluster.succession],
        "first_lsn": lsn,
        "window_s": cluster.window_s,
        "window_log_bytes": cluster.window_log_bytes,
        "residency": cluster.residency.to_dict(),
        "rpo_s": known.rpo_s,
    }


async def join(
    plane: ControlPlane, invitation: Mapping[str, Any], *, reader_count: int, memory_bytes: int
) -> dict[str, Any]:
    """Declares this region's copy of a global cluster, as `invite` said. Raises UsageError, MalformedError."""
    machine, host = this_machine(), plane.config.listen_host
    memory_bytes = memory_bytes or plane.config.instance_bytes
    sizing.check_memory(memory_bytes, machine)
    try:
        wanted = _invited(invitation)
    except UNDECODABLE as error:
        raise MalformedError(f"that is no invitation to a global cluster: {error!r}") from error
    readers.check(reader_count, wanted.engine)
    name, policy = wanted.name, wanted.residency
    move = (str(invitation["primary"]), plane.fleet.region)
    moves.require(plane.config, policy, str(invitation["global"]), Purpose.ADD_REGION, [move])
    moves.require_quiet(plane.config, policy, str(invitation["global"]), plane.fleet.region)

    def change(fleet: Fleet) -> Fleet:
        there = next((c for c in fleet.clusters if c.name == name), None)
        if there is not None:
            if there.membership is not None and there.membership.name == str(invitation["global"]):
                return fleet  # asked for again
            raise UsageError(f"there is a cluster {name!r} in {fleet.region} already: it would be the copy's name")
        count = int(invitation["groups"])
        groups = tuple(place_group(n, fleet.azs, fleet.nodes, fleet.volumes()) for n in range(count))
        ports = free_ports(fleet, host, 3, after=before_those_of(int(invitation["slot"])))
        az = place_instance(fleet.azs, [i.az for c in fleet.clusters for i in c.instances])
        owner = DBInstance(f"{name}-1", Role.REPLICATOR, az, ports[2], memory_bytes=memory_bytes)
        volume = replace(wanted.volume, groups=groups)
        cluster = replace(wanted, volume=volume, port=ports[0], reader_port=ports[1], instances=(owner,))
        fleet = with_readers(
            fleet.with_cluster(cluster),
            name,
            reader_count,
            tier=DEFAULT_TIER,
            memory_bytes=memory_bytes,
            ports=lambda fleet, count: free_ports(fleet, host, count),
        )
        return sizing.with_sizes(fleet, machine)

    with passfiles.following(plane.config.data_dir, lambda: plane.fleet, plane.say):
        path = report.passfile(plane.config.data_dir, name, wanted.engine)
        await asyncio.to_thread(adapter(wanted.engine).write_passfile, path, wanted.superuser_password)
        await plane.commit(change)
    _note(plane, name, f"{name} is a copy of region {invitation['primary']}'s")
    return {"global": str(invitation["global"]), "cluster": name, "region": plane.fleet.region}


def _invited(plain: Mapping[str, Any]) -> DBCluster:
    peers = tuple(_peer(each) for each in plain["peers"])
    known = Membership(str(plain["global"]), int(plain["slot"]), str(plain["primary"]), peers, int(plain["first_lsn"]))
    known = replace(known, rpo_s=float(plain.get("rpo_s", 0.0)))
    volume = VolumeState(uuid4(), int(plain["page_size"]), int(plain["group_bytes"]), ())
    return DBCluster(
        str(plain["cluster"]),
        str(plain["engine"]),
        str(plain["engine_version"]),
        "",
        0,
        unseal(SEALED, str(plain["password"])),
        volume,
        created_at_s=time.time(),
        parameters=tuple((str(k), str(v)) for k, v in plain["parameters"]),
        window_s=int(plain["window_s"]),
        window_log_bytes=int(plain["window_log_bytes"]),
        succession=turns_from_plain(plain["turns"]),
        membership=known,
        residency=Policy.from_dict(plain.get("residency", {})),
    )


async def wait_copied(plane: ControlPlane, name: str, timeout_s: float) -> None:
    """Waits until all pages of this region's copy are here, and its readers serve. Raises UsageError,
    QuorumLostError."""
    cluster, _ = member(plane, name)

    def copied() -> bool:
        check_hope(plane.attempts, key(Kind.INSTANCE, cluster.writer().instance_id))
        return plane.fleet.cluster(cluster.name).volume.initialised

    await plane.wait_until(copied, timeout_s, f"copying {cluster.name} to {plane.fleet.region}")
    ids = [reader.instance_id for reader in plane.fleet.cluster(cluster.name).readers()]
    if ids:
        await readers.wait(plane, ids, timeout_s)


async def forget_region(plane: ControlPlane, name: str, region: str) -> dict[str, Any]:
    """Another region belongs to the global cluster no more, as far as this one knows. Raises UsageError."""
    cluster, known = member(plane, name)
    known.peer(region)
    if cluster.is_secondary:
        raise UsageError(f"{plane.fleet.region} is a secondary region: regions are removed in {known.primary}")

    def change(fleet: Fleet) -> Fleet:
        now = global_cluster(fleet, name)
        assert now.membership is not None  # noqa: S101 - it was looked up by it
        return fleet.with_cluster(replace(now, membership=now.membership.without_peer(region)))

    await plane.commit(change)
    plane.regions.forget(name, region)
    _note(plane, cluster.name, f"region {region} belongs to {name} no more")
    return {"global": name, "region": region, "removed": True}


async def remove_region(
    plane: ControlPlane, name: str, region: str, *, keep: bool, force: bool, timeout_s: float
) -> dict[str, Any]:
    """Has a secondary region leave, see `leave`, and forgets it. With `force` also one that does not answer: it stays
    as it is, and follows as long as it can. Raises UsageError, QuorumLostError."""
    cluster, known = member(plane, name)
    peer = known.peer(region)
    if cluster.is_secondary:
        raise UsageError(f"{plane.fleet.region} is a secondary region: regions are removed in {known.primary}")
    known.require_no_lease("removed")
    request = pb.LeaveGlobalClusterRequest(global_cluster=name, keep=keep, timeout_s=timeout_s)
    done: dict[str, Any] = {"global": name, "region": region, "left": False}
    try:
        done |= dict(await plane.regions.ask(peer, "LeaveGlobalCluster", request, 2 * timeout_s + SLACK_S))
        done["left"] = True
    except UsageError:  # it has left already, and this was not noted
        if peer.region in {v[0].region for v in [plane.regions.view(name, region)] if v is not None and v[1] < 1.0}:
            raise
    except AuroraError as error:
        if not force:
            raise QuorumLostError(
                f"region {region} does not answer ({error}): bring it back, or say --force"
            ) from error
    return {**done, **await forget_region(plane, name, region)}


async def leave(plane: ControlPlane, name: str, *, keep: bool, timeout_s: float) -> dict[str, Any]:
    """This region belongs to the global cluster no more. With `keep` its copy becomes a cluster of its own, with a
    writer, as it is now; else it is deleted, and can be restored for a while. Raises UsageError, QuorumLostError."""
    cluster, known = member(plane, name)
    if not cluster.is_secondary and known.peers:
        others = ", ".join(peer.region for peer in known.peers)
        raise UsageError(f"{plane.fleet.region} is the primary of {name}: first remove {others}, or switch over")
    if cluster.is_secondary and (keep or known.yielded_to) and not cluster.volume.initialised:
        raise UsageError(f"the copy of {cluster.name} in {plane.fleet.region} is not complete: nothing could be kept")
    seen = [view for peer in known.peers if (heard := plane.regions.view(name, peer.region)) for view in heard[:1]]
    highest = max([cluster.generation, known.yielded_to, *(view.generation for view in seen)])
    turn = (_end(plane, cluster), next_generation(highest, known.slot))

    def change(fleet: Fleet) -> Fleet:
        now = global_cluster(fleet, name)
        if not now.is_secondary:
            return fleet.with_cluster(replace(now, membership=None))
        # It is opened for a later generation, which shuts its replicator out whatever that does; so it is if it is
        # brought back after it was deleted.
        alone = with_owner(replace(now, membership=None, succession=(*now.succession, turn)), Role.WRITER)
        return fleet.with_cluster(alone if keep else replace(alone, phase=ClusterPhase.DELETING))

    await plane.commit(change)
    _note(plane, cluster.name, f"{cluster.name} has left the global cluster {name}")
    if cluster.is_secondary and not keep:
        await plane.wait_until(
            lambda: all(c.name != cluster.name for c in plane.fleet.clusters), timeout_s, f"deleting {cluster.name}"
        )
    return {"global": name, "cluster": cluster.name, "region": plane.fleet.region, "kept": keep}


def _end(plane: ControlPlane, cluster: DBCluster) -> int:
    owner = plane.processes.instances.get(cluster.writer().instance_id)
    status = owner.status if owner is not None else None
    return max(cluster.succession[-1][0] + 1, status.vdl if status is not None else 0)


# ---- which region is the primary


async def turn(plane: ControlPlane, name: str, to: str, wanted: str, timeout_s: float) -> dict[str, Any]:
    """Makes `to` the primary; waits until it takes writes. Asked of any region.

    A `switchover` asks the primary to make way, and loses nothing; a primary that has made way takes its place back by
    it. A `failover` asks nobody: the copy goes on as it is, and the answer says what that may lose.

    Raises UsageError, and QuorumLostError when the time is over: then it goes on.
    """
    if wanted not in (known := [each.value for each in Way]):
        raise UsageError(f"{wanted!r} is no way to change a primary: those are {', '.join(known)}")
    return await _turn(plane, name, to, Way(wanted), timeout_s)


async def _turn(plane: ControlPlane, name: str, to: str, way: Way, timeout_s: float) -> dict[str, Any]:
    cluster, known = member(plane, name)
    if to != plane.fleet.region:
        request = pb.TurnRequest(global_cluster=name, region=to, way=way.value, timeout_s=timeout_s)
        answer = await plane.regions.ask(known.peer(to), "TurnGlobalCluster", request, 2 * timeout_s + SLACK_S)
        return dict(answer)
    began_ns = time.time_ns()
    turnover = _intended(plane, cluster, known, way)

    def change(fleet: Fleet) -> Fleet:
        now = global_cluster(fleet, name)
        assert now.membership is not None  # noqa: S101 - it was looked up by it
        if now.membership.turnover is not None and now.membership.turnover.way is way:
            return fleet  # it goes on with that one
        if now.generation >= turnover.generation:
            raise UsageError(f"the primary of {name} has changed meanwhile: ask again")
        return fleet.with_cluster(replace(now, membership=now.membership.turning(turnover)))

    fleet = await plane.commit(change)
    begun = global_cluster(fleet, name).membership
    generation = begun.turnover.generation if begun is not None and begun.turnover is not None else 0
    _note(plane, cluster.name, f"a {way.value} of {name} to {to} was asked for")
    plane.notify()

    def done() -> bool:
        now = global_cluster(plane.fleet, name)
        if now.membership is None or (now.generation < generation and now.membership.turnover is None):
            raise UsageError(f"the {way.value} of {name} to {to} was given up: see `aurora events {cluster.name}`")
        owner = plane.processes.instances.get(now.writer().instance_id)
        open_here = owner is not None and owner.seen.serves(Role.WRITER) and plane.endpoints.serves(now)
        return now.generation >= generation and not now.is_secondary and open_here

    await plane.wait_until(done, timeout_s, f"the {way.value} of {name} to {to}")
    now = global_cluster(plane.fleet, name)
    report = (now.membership.promotion if now.membership is not None else None) or {}
    first_ns = await _first_write(plane, now, began_ns)
    return {
        "global": name,
        "cluster": now.name,
        "primary": to,
        **report,
        "rto_s": round((first_ns - began_ns) / 1e9, 3),
    }


def _intended(plane: ControlPlane, cluster: DBCluster, known: Membership, way: Way) -> Turnover:
    """Raises UsageError for what makes no sense."""
    here, name = plane.fleet.region, known.name
    seen = [view for peer in known.peers if (heard := plane.regions.view(name, peer.region)) for view in heard[:1]]
    highest = max([cluster.generation, known.yielded_to, known.refuses_below, *(view.highest for view in seen)])
    if not cluster.is_secondary:
        raise UsageError(f"{here} is the primary of {name} already")
    if not cluster.volume.initialised:
        raise UsageError(f"the copy of {cluster.name} in {here} is not complete yet: wait until all pages are there")
    # A primary that made way takes its place back from the region that it made way for.
    old = (known.region_of(known.yielded_to, here) if known.yielded_to else None) or known.primary
    heard = plane.regions.view(name, old)
    if way is Way.SWITCHOVER and (heard is None or heard[1] > SLACK_S):
        raise UsageError(
            f"region {old} cannot be reached, so it cannot make way: wait for it, or "
            f"`aurora global failover {name} --to {here}`, which may lose its last writes"
        )
    return Turnover(way, old, here, next_generation(highest, known.slot))


async def _first_write(plane: ControlPlane, cluster: DBCluster, after_ns: int) -> int:
    """When the volume first moved in the new primary (an engine that starts writes); now, if that cannot be told."""
    instance = plane.processes.instances.get(cluster.writer().instance_id)
    try:
        found = await instance.process.do(FirstWrite(after_ns, FIRST_WRITE_WITHIN_S)) if instance is not None else None
    except (AuroraError, TimeoutError):
        found = None
    return found[0] if found is not None else time.time_ns()


async def make_way(plane: ControlPlane, name: str, generation: int) -> dict[str, Any]:
    """Asked by the region that takes that generation: no writer is open here from now on. It may be asked of the
    primary, and, by a primary that takes its place back, of the region that it made way for.

    Raises UsageError if a later generation is known, or it is none of these. Of a primary that made way for another
    region as well: both could be promoted then, at the same end, and one of them would lose what it wrote.
    """
    cluster, known = member(plane, name)
    here = plane.fleet.region
    to = known.region_of(generation, here)

    def change(fleet: Fleet) -> Fleet:
        now = global_cluster(fleet, name)
        known = now.membership
        assert known is not None  # noqa: S101 - it was looked up by it
        if now.generation >= generation or known.yielded_to > generation:
            raise UsageError(f"generation {generation} is over: {here} knows a later one")
        if known.yielded_to and known.region_of(known.yielded_to, here) != to:
            other = known.region_of(known.yielded_to, here)
            raise UsageError(f"{here} makes way for {other}: `aurora global switchover {name} --to {here}` ends that")
        if now.is_secondary and not known.yielded_to and known.turnover is None:
            raise UsageError(f"{here} is not the primary of {name}: that is {known.primary}")
        return fleet.with_cluster(made_way(now, known, generation))

    await plane.commit(change)
    plane.turns.joined(cluster.name, generation)
    _note(plane, cluster.name, f"{cluster.name} makes way for region {to}, in generation {generation}")
    plane.notify()
    return {"made_way_for": generation}


# ---- what makes no sense for it


def require_alone(cluster: DBCluster, verb: str) -> None:
    """Raises UsageError for a cluster that is part of a global one: what is done to it would be done to one region."""
    known = cluster.membership
    if known is None:
        return
    way = (
        f"`aurora global detach {known.name}` first"
        if not cluster.is_secondary
        else (f"`aurora global remove-region {known.name} REGION` in {known.primary} takes this region out")
    )
    raise UsageError(f"{cluster.name} is part of the global cluster {known.name} and cannot {verb}: {way}")


def require_writer(cluster: DBCluster, verb: str) -> None:
    """Raises UsageError in a secondary region, where no engine writes."""
    known = cluster.membership
    if cluster.is_secondary and known is not None:
        raise UsageError(f"{cluster.name} cannot {verb} in a secondary region of {known.name}: ask {known.primary}")


# ---- inside


def member(plane: ControlPlane, name: str) -> tuple[DBCluster, Membership]:
    """The cluster here that is part of the global cluster. Raises UsageError."""
    cluster = global_cluster(plane.fleet, name)
    assert cluster.membership is not None  # noqa: S101 - it was looked up by it
    return cluster, cluster.membership


def global_cluster(fleet: Fleet, name: str) -> DBCluster:
    """The cluster that is part of that global cluster. Raises UsageError."""
    for cluster in fleet.clusters:
        if cluster.membership is not None and cluster.membership.name == name:
            return cluster
    known = ", ".join(c.membership.name for c in fleet.clusters if c.membership is not None) or "none"
    raise UsageError(f"there is no global cluster {name!r} in {fleet.region} (there is: {known})")


async def _present(plane: ControlPlane, cluster: DBCluster) -> int:
    """Up to where all is durable: a copy begins there."""
    instance = plane.processes.instances.get(cluster.writer().instance_id)
    if instance is None or not instance.seen.serves(Role.WRITER):
        raise UsageError(f"the writer of {cluster.name} is not available: ask again when it is")
    status = await instance.process.status()
    if status is None or not status.vdl:
        raise NodeUnreachableError(f"the writer of {cluster.name} does not say up to where it has written")
    return status.vdl


def _peer_plain(peer: Peer, reader: Secret) -> dict[str, Any]:
    return {**asdict(peer), "secret": seal(SEALED, peer.secret, reader)}


def _peer(plain: Mapping[str, Any]) -> Peer:
    text = {name: str(plain[name]) for name in ("region", "fleet_id", "address", "data_dir")}
    UUID(text["fleet_id"])
    return Peer(slot=int(plain["slot"]), **text, secret=unseal(SEALED, str(plain["secret"])))


def _note(plane: ControlPlane, cluster: str, told: str) -> None:
    plane.say(told)
    plane.events.note(EventKind.REGION, cluster, told, cluster)
