"""All metrics of a fleet as one Prometheus text: what storage nodes tell of themselves, and what processes count."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from aurora_ray import telemetry
from aurora_ray.control.runtime import ProcessGoneError
from aurora_ray.errors import AuroraError
from aurora_ray.telemetry.fleet_metrics import family, merge

if TYPE_CHECKING:
    from aurora_ray.control.plane import ControlPlane
    from aurora_ray.control.processes import Instance
    from aurora_ray.storage.v1 import storage_pb2 as pb

LOOK_TIMEOUT_S: Final = 2.0

Sample = tuple[Mapping[str, str], float]


async def fleet_metrics(plane: ControlPlane) -> bytes:
    """Whoever does not answer in time is left out."""
    instances, nodes = dict(plane.processes.instances), dict(plane.processes.nodes)
    texts = await asyncio.gather(*(_of_instance(instance) for instance in instances.values()))
    states = await asyncio.gather(*(_state(plane, node_id) for node_id in nodes))
    expositions: list[tuple[Mapping[str, str], bytes]] = [({"process": "control"}, telemetry.exposition())]
    expositions += [({"process": name}, text) for name, text in zip(instances, texts, strict=True)]
    known = {node_id: state for node_id, state in zip(nodes, states, strict=True) if state is not None}
    return (
        merge(expositions)
        + b"".join(_clusters(plane))
        + b"".join(_storage(known, [n.node_id for n in plane.fleet.nodes]))
    )


async def _of_instance(instance: Instance) -> bytes:
    try:
        return await instance.process.metrics(LOOK_TIMEOUT_S)
    except (ProcessGoneError, TimeoutError):
        return b""


async def _state(plane: ControlPlane, node_id: str) -> pb.StateReply | None:
    node = plane.processes.nodes.get(node_id)
    if node is None:
        return None
    try:
        return await plane.processes.clients.state(node_id, node.seen.address, timeout_s=LOOK_TIMEOUT_S)
    except AuroraError:
        return None


def _clusters(plane: ControlPlane) -> Iterable[bytes]:
    vdls: list[Sample] = []
    epochs: list[Sample] = []
    up: list[Sample] = []
    for cluster in plane.fleet.clusters:
        labels = {"cluster": cluster.name}
        instance = plane.processes.instances.get(cluster.writer().instance_id)
        status = plane.processes.last_status(cluster.writer().instance_id)
        up.append((labels, float(instance is not None and instance.seen.phase == "available")))
        if status is not None:
            vdls.append((labels, float(status.vdl)))
            epochs.append((labels, float(status.epoch)))
    yield family("aurora_cluster_up", "gauge", "1 while the writer accepts statements", up)
    yield family("aurora_cluster_vdl_bytes", "gauge", "Volume durable LSN, as last looked at", vdls)
    yield family("aurora_cluster_epoch", "gauge", "The writer's epoch", epochs)


def _storage(states: Mapping[str, pb.StateReply], declared: Iterable[str]) -> Iterable[bytes]:
    up = [({"node": node_id}, float(node_id in states)) for node_id in declared]
    yield family("aurora_storage_up", "gauge", "1 for a storage node that answers", up)
    scl: list[Sample] = []
    copied: list[Sample] = []
    to_copy: list[Sample] = []
    damaged: list[Sample] = []
    for node_id, state in states.items():
        for volume in state.volumes:
            for segment in volume.segments:
                labels = {"node": node_id, "volume": volume.volume.hex(), "group": str(segment.group)}
                scl.append((labels, float(segment.scl)))
                damaged.append((labels, float(segment.damaged_items)))
                if segment.HasField("copy"):
                    copied.append((labels, float(segment.copy.bytes_copied)))
                    to_copy.append((labels, float(segment.copy.bytes_total)))
    yield family("aurora_storage_scl_bytes", "gauge", "Segment complete LSN", scl)
    yield family("aurora_storage_damaged_items", "gauge", "Found damaged and not yet repaired", damaged)
    yield family("aurora_storage_repair_copied_bytes", "gauge", "Of the last or running copy from peers", copied)
    yield family("aurora_storage_repair_total_bytes", "gauge", "Size of the last or running copy from peers", to_copy)
    disk = [({"node": node_id}, float(state.disk_bytes)) for node_id, state in states.items()]
    yield family("aurora_storage_disk_bytes", "gauge", "On a node's disk", disk)
    refused, events = "refused_", []
    refusals: list[Sample] = []
    for node_id, state in states.items():
        for name, count in sorted(state.counters.items()):
            if name.startswith(refused):
                refusals.append(({"node": node_id, "reason": name.removeprefix(refused)}, float(count)))
            else:
                events.append(({"node": node_id, "what": name}, float(count)))
    yield family("aurora_storage_refused_total", "counter", "Requests that were refused, and why", refusals)
    yield family("aurora_storage_events_total", "counter", "What nodes count, since they started", events)
