"""All metrics of a fleet as one Prometheus text: what processes count, what storage nodes and endpoints tell."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from aurora_ray import telemetry
from aurora_ray.compute.role import Role
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.control.observe.space import space_troubles
from aurora_ray.errors import AuroraError
from aurora_ray.telemetry.fleet_metrics import family, merge

if TYPE_CHECKING:
    from aurora_ray.compute.config import InstanceStatus
    from aurora_ray.control.decide.metering import Meter, Totals
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.observe.endpoints import Endpoints
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.observe.processes import Processes
    from aurora_ray.endpoint.host import EndpointState
    from aurora_ray.storage.v1 import storage_pb2 as pb
    from aurora_ray.troubles import Trouble

LOOK_TIMEOUT_S: Final = 2.0
REFUSED: Final = "refused_"  # how a storage node's counters of refusals begin

Sample = tuple[Mapping[str, str], float]

_BACKUP_FAMILIES: Final = (
    ("lsn", "Up to where all is in the bucket"),
    ("time_s", "When the last flush in the bucket was written, Unix time"),
    ("lag_s", "For how long something durable is not in the bucket"),
)
_USAGE_FAMILIES: Final[tuple[tuple[str, str, Callable[[Totals], float]], ...]] = (
    ("aurora_usage_acu_seconds_total", "Capacity units times seconds", lambda totals: totals.acu_s),
    ("aurora_usage_read_pages_total", "Pages that engines read from storage", lambda totals: totals.pages),
    ("aurora_usage_redo_bytes_total", "Redo that became durable", lambda totals: totals.redo_bytes),
    ("aurora_usage_storage_byte_seconds_total", "Bytes of the volume times seconds", lambda totals: totals.byte_s),
)
_ENDPOINT_FAMILIES: Final = (
    ("open", "gauge", "Sessions, relayed or handed over"),
    ("held", "gauge", "Connections that wait for a target"),
    ("accepted", "counter", "Connections accepted"),
    ("refused", "counter", "Connections refused, as there were too many"),
    ("expired", "counter", "Connections that waited too long for a target"),
    ("cut", "counter", "Sessions reset because their target was withdrawn"),
    ("handed", "counter", "Sessions whose socket an engine on the same machine was given"),
)
_SEGMENT_FAMILIES: Final[tuple[tuple[str, str, Callable[[Any], int]], ...]] = (
    ("aurora_storage_scl_bytes", "Segment complete LSN", lambda segment: segment.scl),
    ("aurora_storage_vdl_bytes", "The highest volume durable LSN that a copy knows", lambda segment: segment.vdl),
    ("aurora_storage_promised_epoch", "Lower ones cannot append", lambda segment: segment.promised_epoch),
    ("aurora_storage_installed_epoch", "Whose history a copy has", lambda segment: segment.installed_epoch),
    ("aurora_storage_damaged_items", "Found damaged and not yet repaired", lambda segment: segment.damaged_items),
)
_COPY_FAMILIES: Final[tuple[tuple[str, str, Callable[[Any], int]], ...]] = (
    ("aurora_storage_repair_running", "1 while a copy is being made from peers", lambda copy: copy.running),
    ("aurora_storage_repair_copied_bytes", "Of the last or running copy from peers", lambda copy: copy.bytes_copied),
    ("aurora_storage_repair_total_bytes", "Size of the last or running copy", lambda copy: copy.bytes_total),
)


async def fleet_metrics(
    fleet: Fleet, processes: Processes, endpoints: Endpoints, troubles: Sequence[Trouble], meter: Meter
) -> bytes:
    """`troubles`: what the control plane says of itself. Whoever does not answer in time is left out."""
    instances, nodes = dict(processes.instances), dict(processes.nodes)
    texts, states, endpoint_states = await asyncio.gather(
        asyncio.gather(*(_of_instance(instance) for instance in instances.values())),
        asyncio.gather(*(_state(processes, node_id) for node_id in nodes)),
        endpoints.states(LOOK_TIMEOUT_S),
    )
    expositions: list[tuple[Mapping[str, str], bytes]] = [({"process": "control"}, telemetry.exposition())]
    expositions += [({"process": name}, text) for name, text in zip(instances, texts, strict=True)]
    known = {node_id: state for node_id, state in zip(nodes, states, strict=True) if state is not None}
    declared = [node.node_id for node in fleet.nodes]
    parts = (
        _clusters(fleet, processes, troubles, known),
        _usage(fleet, meter),
        _endpoints(endpoint_states),
        _storage(known, declared),
        _segments(known),
    )
    return merge(expositions) + b"".join(chain.from_iterable(parts))


async def _of_instance(instance: Instance) -> bytes:
    try:
        return await instance.process.metrics(LOOK_TIMEOUT_S)
    except (ProcessGoneError, TimeoutError):
        return b""


async def _state(processes: Processes, node_id: str) -> pb.StateReply | None:
    node = processes.nodes.get(node_id)
    if node is None:
        return None
    try:
        return await processes.clients.state(node_id, node.seen.address, timeout_s=LOOK_TIMEOUT_S)
    except AuroraError:
        return None


def _clusters(
    fleet: Fleet, processes: Processes, troubles: Sequence[Trouble], states: Mapping[str, pb.StateReply]
) -> Iterable[bytes]:
    vdls: list[Sample] = []
    epochs: list[Sample] = []
    up: list[Sample] = []
    statuses: list[InstanceStatus | None] = []
    for cluster in fleet.clusters:
        labels = {"cluster": cluster.name}
        instance = processes.instances.get(cluster.writer().instance_id)
        status = processes.last_status(cluster.writer().instance_id)
        statuses.append(status)
        up.append((labels, float(instance is not None and instance.seen.serves(Role.WRITER))))
        if status is not None:
            vdls.append((labels, float(status.vdl)))
            epochs.append((labels, float(status.epoch)))
    yield family("aurora_cluster_up", "gauge", "1 while the writer accepts statements", up)
    yield family("aurora_cluster_vdl_bytes", "gauge", "Volume durable LSN, as last looked at", vdls)
    lags = [
        ({"cluster": cluster.name, "instance": reader.instance_id}, instance.seen.lag_ms / 1000)
        for cluster in fleet.clusters
        for reader in cluster.readers()
        if (instance := processes.instances.get(reader.instance_id)) is not None
        and instance.seen.serves(Role.READER)
        and instance.seen.lag_ms is not None
    ]
    yield family("aurora_reader_lag_seconds", "gauge", "How old what a reader does not show yet is", lags)
    capacities = [
        ({"cluster": cluster.name, "instance": each.instance_id}, _acu(processes.instances.get(each.instance_id)))
        for cluster in fleet.clusters
        if cluster.capacity is not None
        for each in cluster.engines()
    ]
    yield family("aurora_serverless_acu", "gauge", "Capacity units in force; 0 while it does not run", capacities)
    paused = [({"cluster": c.name}, float(c.paused_since_s > 0)) for c in fleet.clusters if c.capacity is not None]
    yield family("aurora_serverless_paused", "gauge", "1 while a cluster is paused", paused)
    yield from _backups(fleet, processes)
    yield family("aurora_cluster_epoch", "gauge", "The writer's epoch", epochs)
    told = [*troubles, *space_troubles(states), *(t for s in statuses if s is not None for t in s.troubles)]
    counted = Counter((str(trouble.code), trouble.subject) for trouble in told)
    counts = [({"code": code, "subject": subject}, float(count)) for (code, subject), count in counted.items()]
    yield family("aurora_troubles", "gauge", "What is not as it shall be; `aurora status` says it in words", counts)


def _usage(fleet: Fleet, meter: Meter) -> Iterable[bytes]:
    known = [({"cluster": c.name}, totals) for c in fleet.clusters if (totals := meter.totals(c.name)) is not None]
    for name, words, value in _USAGE_FAMILIES:
        yield family(name, "counter", words, [(labels, float(value(totals))) for labels, totals in known])


def _acu(instance: Instance | None) -> float:
    serves = instance is not None and instance.seen.phase is InstancePhase.AVAILABLE
    return instance.seen.capacity.acu if serves and instance is not None and instance.seen.capacity is not None else 0.0


def _backups(fleet: Fleet, processes: Processes) -> Iterable[bytes]:
    """As last looked at."""
    told = [
        ({"cluster": cluster.name}, status.stats)
        for cluster in fleet.clusters
        for each in cluster.instances
        if each.role.traits.archives and (status := processes.last_status(each.instance_id)) is not None
    ]
    for name, words in _BACKUP_FAMILIES:
        samples = [(labels, float(stats[f"backup_{name}"])) for labels, stats in told if f"backup_{name}" in stats]
        yield family(f"aurora_backup_{name.replace('_s', '_seconds')}", "gauge", words, samples)


def _endpoints(states: Mapping[str, EndpointState]) -> Iterable[bytes]:
    for name, kind, words in _ENDPOINT_FAMILIES:
        samples = [({"endpoint": one.name}, float(getattr(one.stats, name))) for one in states.values()]
        suffix = "_total" if kind == "counter" else ""
        yield family(f"aurora_endpoint_sessions_{name}{suffix}", kind, words, samples)


def _storage(states: Mapping[str, pb.StateReply], declared: Iterable[str]) -> Iterable[bytes]:
    up = [({"node": node_id}, float(node_id in states)) for node_id in declared]
    yield family("aurora_storage_up", "gauge", "1 for a storage node that answers", up)
    disk = [({"node": node_id}, float(state.disk_bytes)) for node_id, state in states.items()]
    yield family("aurora_storage_disk_bytes", "gauge", "On a node's disk", disk)
    refused: list[Sample] = []
    events: list[Sample] = []
    for node_id, state in states.items():
        for name, count in sorted(state.counters.items()):
            reason = name.removeprefix(REFUSED)
            if reason != name:
                refused.append(({"node": node_id, "reason": reason}, float(count)))
            else:
                events.append(({"node": node_id, "event": name}, float(count)))
    yield family("aurora_storage_refused_total", "counter", "Appends and other calls refused, by reason", refused)
    yield family("aurora_storage_events_total", "counter", "Everything else that storage nodes count", events)


def _segments(states: Mapping[str, pb.StateReply]) -> Iterable[bytes]:
    """A sample a copy of a protection group."""
    held = [
        ({"node": node_id, "volume": volume.volume.hex(), "group": str(segment.group)}, segment)
        for node_id, state in states.items()
        for volume in state.volumes
        for segment in volume.segments
    ]
    ends: dict[tuple[str, str], int] = {}  # of what any copy has
    for labels, segment in held:
        key = labels["volume"], labels["group"]
        ends[key] = max(ends.get(key, 0), segment.scl)
    for name, words, value in _SEGMENT_FAMILIES:
        yield family(name, "gauge", words, [(labels, float(value(segment))) for labels, segment in held])
    lag = [(labels, float(ends[labels["volume"], labels["group"]] - segment.scl)) for labels, segment in held]
    yield family("aurora_storage_lag_bytes", "gauge", "Of log that another copy has and this one lacks", lag)
    copies = [(labels, segment.copy) for labels, segment in held if segment.HasField("copy")]
    for name, words, progress in _COPY_FAMILIES:
        yield family(name, "gauge", words, [(labels, float(progress(copy))) for labels, copy in copies])
