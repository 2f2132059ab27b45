"""What users are shown: plain dictionaries with the keys of the command line's JSON. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aurora_ray.compute.config import IncarnationPhase
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import lacking
from aurora_ray.control.model import addresses
from aurora_ray.control.model.custom_endpoints import CLUSTER, READER
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet, Group, StorageNode, VolumeState
from aurora_ray.control.observe.endpoints import address_of, endpoint_name
from aurora_ray.control.observe.space import REFUSING, space_troubles
from aurora_ray.engine.registry import adapter
from aurora_ray.log.sizes import VOLUME_BYTES_MAX

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.compute.config import InstanceStatus
    from aurora_ray.control.model.attempt import Attempt
    from aurora_ray.control.observe.known import Instance, Node
    from aurora_ray.endpoint.host import EndpointState
    from aurora_ray.storage.v1 import storage_pb2 as pb
    from aurora_ray.troubles import Trouble


def passfile(data_dir: Path, name: str, engine: str) -> Path:
    """Where the password of a cluster's superuser lies, for clients on this machine."""
    return data_dir / "passfiles" / f"{name}{adapter(engine).passfile_suffix}"


def dsn(cluster: DBCluster, host: str, port: int, data_dir: Path) -> str:
    """A connection string without a secret in it."""
    return adapter(cluster.engine).client.dsn([(host, port)], passfile(data_dir, cluster.name, cluster.engine))


def instances_dsn(cluster: DBCluster, fleet: Fleet, listen_host: str, data_dir: Path) -> str:
    """All addresses at which the cluster's instances may be: a client finds the one that takes writes by itself.

    An instance keeps its port and may move to any machine that has storage nodes.
    """
    machines = sorted({address_of(listen_host, node.host) for node in fleet.nodes if node.host})
    addresses = [
        (machine, instance.port)
        for instance in cluster.instances
        if instance.role.traits.addressed
        for machine in machines or [address_of(listen_host, "127.0.0.1")]
    ]
    return adapter(cluster.engine).client.dsn(
        addresses, passfile(data_dir, cluster.name, cluster.engine), writable=True
    )


def driver(cluster: DBCluster, listen_host: str, data_dir: Path) -> dict[str, str] | None:
    """What drivers need that tell instances apart by their host alone (README). None where there are no such addresses:
    the fleet does not listen on this machine alone."""
    if not addresses.are_there(listen_host):
        return None
    at = {name: addresses.own_address(port or cluster.port) for name, port in cluster.endpoint_ports().items()}
    return {
        "host_pattern": addresses.HOST_PATTERN,
        "dsn": dsn(cluster, at[CLUSTER], cluster.port, data_dir),
        "reader_dsn": dsn(cluster, at[READER], cluster.port, data_dir),
    }


def cluster_state(cluster: DBCluster, instances: Mapping[str, Instance], attempts: Mapping[Key, Attempt]) -> str:
    """One word: creating, restoring (read from its backup), available, paused (whoever connects wakes it), recovering
    (it was available and will be), failed (someone must act), deleting; in a secondary region copying (pages come),
    following."""
    if cluster.phase is ClusterPhase.DELETING:
        return "deleting"
    if cluster.paused_since_s:
        return "paused"
    writer = cluster.writer().instance_id
    instance = instances.get(writer)
    if instance is not None and (word := _served(cluster, instance)):
        return word
    attempt = attempts.get(key(Kind.INSTANCE, writer))
    if attempt is not None and attempt.permanent:
        return "failed"
    return "recovering" if cluster.volume.initialised else "creating"


def _served(cluster: DBCluster, instance: Instance) -> str:
    if instance.seen.serves(Role.WRITER):
        return "available"
    if cluster.is_restored_now() and instance.seen.serves(Role.STATIC):
        return "restoring"  # it can be read
    if instance.seen.serves(Role.REPLICATOR):
        return "following" if instance.seen.copied else "copying"
    return ""


def report_cluster(
    cluster: DBCluster,
    fleet: Fleet,
    *,
    data_dir: Path,
    listen_host: str,
    nodes: Mapping[str, Node],
    instances: Mapping[str, Instance],
    statuses: Mapping[str, InstanceStatus | None],
    node_states: Mapping[str, pb.StateReply],
    attempts: Mapping[Key, Attempt],
    endpoints: Mapping[str, Any],
    notes: tuple[str, ...] = (),
    faults: Sequence[Mapping[str, Any]] = (),
    troubles: Iterable[Trouble] = (),
    limit_bytes: int = VOLUME_BYTES_MAX,
) -> dict[str, Any]:
    """The whole of `aurora status NAME --json`. `faults`: see chaos.in_force; `troubles`: of the fleet as a whole."""
    status = statuses.get(cluster.writer().instance_id)
    volume_id = cluster.volume.volume_id
    pairs = fleet.replacements()
    storage = [
        _node(node, cluster.volume, nodes.get(node.node_id), node_states.get(node.node_id))
        | {"replaces": node.replaces or None, "replaced_by": pairs.get(node.node_id)}
        for node in fleet.nodes
    ]
    return {
        "cluster": cluster.name,
        "engine": cluster.engine,
        "engine_version": cluster.engine_version,
        "parameters": dict(cluster.parameters),
        "scaling": cluster.scaling.report() if cluster.scaling is not None else None,
        "state": cluster_state(cluster, instances, attempts),
        "region": fleet.region,
        "epoch": status.epoch if status is not None else 0,
        "vdl": max([status.vdl if status is not None else 0, *(node["vdl"] for node in storage)]),
        "endpoints": {**endpoints, "instances": {"dsn": instances_dsn(cluster, fleet, listen_host, data_dir)}},
        "driver": driver(cluster, listen_host, data_dir),
        "instances": [
            _instance(i, instances, statuses, attempts)
            | {"dsn": dsn(cluster, _host(listen_host, instances.get(i.instance_id)), i.port, data_dir)}
            for i in cluster.instances
        ],
        "storage_nodes": storage,
        "volume": {
            "id": str(volume_id),
            "bytes": status.used_bytes if status is not None else 0,
            "protection_groups": len(cluster.volume.groups),
            "limit_bytes": limit_bytes,
        },
        "faults": [dict(fault) for fault in faults],
        "troubles": [
            trouble.report() for trouble in sorted({*troubles, *_told(statuses.values()), *space_troubles(node_states)})
        ],
        "notes": [*notes, *_to_be_replaced(fleet, nodes)],
    }


def _told(statuses: Iterable[InstanceStatus | None]) -> Iterator[Trouble]:
    for status in statuses:
        if status is not None:
            yield from status.troubles


def _to_be_replaced(fleet: Fleet, nodes: Mapping[str, Node]) -> Iterator[str]:
    """Nodes whose copies are gone, as long as nothing else tells that others take their place."""
    pairs = fleet.replacements()
    for declared in fleet.nodes:
        node = nodes.get(declared.node_id)
        if node is None or node.seen.silent or declared.leaving or declared.node_id in pairs:
            continue
        if lacking(fleet, declared.node_id, node.seen) - node.seen.refilling:
            yield f"a new storage node is going to take the place of {declared.node_id}, whose copies are gone"


def small_notes(*, small: bool) -> Iterator[str]:
    """What a small fleet does not have, which nothing else tells."""
    if small:
        yield "a small fleet: the storage nodes of an AZ are one process, whose end is that of two of six copies"


def report_endpoints(
    cluster: DBCluster,
    data_dir: Path,
    addresses: Mapping[str, tuple[str, int]],
    states: Mapping[str, EndpointState],
) -> dict[str, Any]:
    """Where clients connect: addresses that stay. `sessions`: open and held ones now, those that were
    cut or handed to an engine, null if they are not known."""

    def one(endpoint: str) -> dict[str, Any]:
        host, port = addresses[endpoint]
        name = endpoint_name(cluster.name, endpoint)
        stats = states[name].stats if name in states else None
        names = ("open", "held", "cut", "handed")
        sessions = {each: getattr(stats, each) for each in names} if stats is not None else None
        return {"host": host, "port": port, "dsn": dsn(cluster, host, port, data_dir), "sessions": sessions}

    known = [instance.instance_id for instance in cluster.instances]
    custom = [each.report(known) | one(each.name) for each in cluster.custom_endpoints]
    return {CLUSTER: one(CLUSTER), READER: one(READER), "custom": custom}


def _host(listen_host: str, instance: Instance | None) -> str:
    return address_of(listen_host, instance.process.host if instance is not None else "127.0.0.1")


def _instance(
    declared: DBInstance,
    instances: Mapping[str, Instance],
    statuses: Mapping[str, InstanceStatus | None],
    attempts: Mapping[Key, Attempt],
) -> dict[str, Any]:
    instance_id = declared.instance_id
    instance, status = instances.get(instance_id), statuses.get(instance_id)
    attempt = attempts.get(key(Kind.INSTANCE, instance_id))
    state = str(instance.seen.phase) if instance is not None else "no process"
    reason = instance.seen.reason if instance is not None else ""
    if instance is not None and instance.seen.phase is InstancePhase.OPENING and status is not None:
        state, reason = str(status.phase), status.reason or reason  # how far it is says more than why it was opened
    return {
        "id": instance_id,
        "role": str(declared.role),
        "tier": declared.promotion_tier,
        "draining": declared.leaving_since_s > 0,
        "az": declared.az,
        "state": state,
        "pid": (status.pid or None) if status is not None else None,
        "port": declared.port,
        "host_id": addresses.host_id(declared.port),
        "declared_memory_bytes": declared.memory_bytes or None,
        "next_memory_bytes": declared.next_memory_bytes or None,
        **_size(status),
        "stats": dict(status.stats) if status is not None else {},
        "socket_dir": (status.socket_dir or None) if status is not None else None,
        "volume": (status.volume_id or None) if status is not None else None,
        "lag_ms": 0 if declared.role.traits.writes else _lag_ms(status),
        "reason": reason or (attempt.error if attempt is not None else ""),
    }


def _lag_ms(status: InstanceStatus | None) -> float | None:
    """Null while it does not follow: what it was is no news."""
    follows = status is not None and status.phase is IncarnationPhase.AVAILABLE and not status.role.traits.writes
    return round(status.lag_ms, 1) if status is not None and follows and status.lag_ms is not None else None


def _size(status: InstanceStatus | None) -> dict[str, Any]:
    """Of a running instance: on a machine that is smaller than its size, less memory than it was declared with."""
    size = status.size if status is not None else None
    if size is None:
        return {"memory_bytes": None, "cpus": None, "acu": None}
    return {"memory_bytes": size.memory_bytes, "cpus": size.cpus, "acu": size.acu}


def _node(declared: StorageNode, volume: VolumeState, node: Node | None, state: pb.StateReply | None) -> dict[str, Any]:
    """`state`: full if it takes no redo for want of room, else as `_node_state`. `scl`: the highest of its groups'
    (equal to the VDL on a node that misses nothing of the latest writes). `copy`: how far the last or running copies
    from peers are, null if there were none."""
    of_volume = [v for v in state.volumes if v.volume == volume.volume_id.bytes] if state is not None else []
    segments = [segment for v in of_volume for segment in v.segments]
    copies = [segment.copy for segment in segments if segment.HasField("copy")]
    return {
        "id": declared.node_id,
        "az": declared.az,
        "state": (
            "full"
            if state is not None and state.space.state in REFUSING
            else _node_state(declared, volume, node, None if state is None else {s.group for s in segments})
        ),
        "pid": node.seen.pid if node is not None else None,
        "address": node.seen.address if node is not None else None,
        "scl": max((int(s.scl) for s in segments), default=0),
        "vdl": max((int(s.vdl) for s in segments), default=0),
        "segments": {str(s.group): int(s.scl) for s in segments},
        "disk_bytes": int(state.disk_bytes) if state is not None else 0,
        "free_bytes": int(state.space.free_bytes) if state is not None else 0,
        "copy": _progress(copies) if copies else None,
    }


def _node_state(declared: StorageNode, volume: VolumeState, node: Node | None, held: set[int] | None) -> str:
    """One word: healthy, filling (it is new, and not a member of all its groups yet), incomplete (it lacks copies that
    it shall have), silent, no process, leaving."""
    if node is None:
        return "no process"
    if held is None:
        return "silent"
    if declared.leaving:
        return "leaving"
    if declared.replaces or any(_is_coming(declared.node_id, group) for group in volume.groups):
        return "filling"
    shall_have = {group.group for group in volume.groups if declared.node_id in group.created_on}
    return "healthy" if shall_have <= held else "incomplete"


def _is_coming(node_id: str, group: Group) -> bool:
    return node_id in group.next_node_ids and node_id not in group.node_ids


def _progress(copies: Sequence[Any]) -> dict[str, Any]:
    """Of copies from peers; `bytes_total` is an estimate while they run."""
    return {
        "running": any(copy.running for copy in copies),
        "bytes_copied": sum(int(copy.bytes_copied) for copy in copies),
        "bytes_total": sum(int(copy.bytes_total) for copy in copies),
        "mb_per_s": round(sum(float(copy.mb_per_s) for copy in copies), 1),
    }
