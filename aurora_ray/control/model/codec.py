"""The declared state as bytes.

Msgpack of `{"format": FORMAT, "fleet": {...}}`; dataclasses as maps by field name, UUIDs as 16 bytes,
tuples as arrays. A reader refuses a format newer than its own and fills in defaults for fields that are missing, so an
added field with a default needs no new format. Format 2 seals secrets (see sealing.py); format 1 had them in
clear. Format 3 has forks, format 4 backups, and volumes that are made out of them, format 5 capacities and clusters
that are paused, format 6 global clusters, format 7 policies of residency.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]

from aurora_ray.compute.role import Role
from aurora_ray.control.model.backups import BackupPlan, RestorePlan
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.model.custom_endpoints import custom_from_plain
from aurora_ray.control.model.origins import Mark, Origin
from aurora_ray.control.model.regional import NO_TURNS, LostTail, Membership, Peer, turns_from_plain
from aurora_ray.control.model.scaling import ReaderScaling, ScalingMetric
from aurora_ray.control.model.sealing import seal, secret_fields, unseal
from aurora_ray.control.model.state import (
    ClusterPhase,
    DBCluster,
    DBInstance,
    DeletedCluster,
    Fleet,
    Group,
    PastVolume,
    StorageNode,
    VolumeState,
)
from aurora_ray.errors import UNDECODABLE, ConfigurationError, MalformedError, UsageError
from aurora_ray.replication.residency import Policy
from aurora_ray.replication.turnover import Turnover

# 2: sealed passwords; deleted clusters, which an older program would forget. 3: forks. 4: backups, as well. 5: clusters
# that are paused, which an older program would start. 6: it would open a secondary region's volume for a writer. 7: it
# would let data go where a policy forbids it.
FORMAT = 7


def pack(fleet: Fleet) -> bytes:
    """The state as bytes."""
    packed: bytes = msgpack.packb({"format": FORMAT, "fleet": _plain(fleet)}, use_bin_type=True)
    return packed


def unpack(data: bytes) -> Fleet:
    """The state from bytes. Raises MalformedError, or ConfigurationError if a newer version wrote it."""
    try:
        document = msgpack.unpackb(data, raw=False, use_list=True)
        written_by = int(document["format"])
    except (*UNDECODABLE, msgpack.UnpackException) as error:
        raise MalformedError(f"The control state does not parse: {error}.") from error
    if written_by > FORMAT:
        raise ConfigurationError(
            f"The control state has format {written_by}, this aurora-ray knows up to {FORMAT}: use the newer version."
        )
    try:
        return _fleet(document["fleet"])
    except (*UNDECODABLE, UsageError) as error:
        raise MalformedError(f"The control state lacks something: {error!r}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Turnover | Policy):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        sealed = {name: seal(f"{type(value).__name__}.{name}", plain[name]) for name in secret_fields(type(value))}
        return plain | sealed
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, UUID):
        return value.bytes
    return str(value) if isinstance(value, StrEnum) else value


def _known(cls: type[Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Only the fields that this version knows: an older program may read what a newer one of the same format wrote."""
    names = {f.name for f in dataclasses.fields(cls)}
    known = {key: value for key, value in plain.items() if key in names}
    for name in secret_fields(cls):
        if name in known:
            known[name] = unseal(f"{cls.__name__}.{name}", known[name])
    return known


def _group(plain: dict[str, Any]) -> Group:
    known = _known(Group, plain)
    nodes = {name: tuple(known.get(name, ())) for name in ("created_on", "next_node_ids")}
    return Group(**{**known, **nodes, "node_ids": tuple(known["node_ids"])})


def _volume(plain: dict[str, Any]) -> VolumeState:
    known = _known(VolumeState, plain)
    groups = tuple(_group(group) for group in known["groups"])
    origin = Origin.from_plain(known["origin"]) if known.get("origin") else None
    restore = RestorePlan.from_plain(known["restore"]) if known.get("restore") else None
    volume_id = UUID(bytes=known["volume_id"])
    return VolumeState(**{**known, "volume_id": volume_id, "groups": groups, "origin": origin, "restore": restore})


def _instance(plain: dict[str, Any]) -> DBInstance:
    known = _known(DBInstance, plain)
    return DBInstance(**{**known, "role": Role(known["role"])})


def _scaling(plain: dict[str, Any]) -> ReaderScaling:
    return ReaderScaling(**{**_known(ReaderScaling, plain), "metric": ScalingMetric(plain["metric"])})


def _cluster(plain: dict[str, Any]) -> DBCluster:
    known = _known(DBCluster, plain)
    return DBCluster(
        **{
            **known,
            "volume": _volume(known["volume"]),
            "instances": tuple(_instance(instance) for instance in known["instances"]),
            "phase": ClusterPhase(known["phase"]),
            "parameters": tuple((str(name), str(value)) for name, value in known.get("parameters", ())),
            "repairs": tuple(known.get("repairs", ())),
            "past": tuple(PastVolume(**{**p, "volume": _volume(p["volume"])}) for p in known.get("past", ())),
            "marks": tuple(Mark.from_plain(mark) for mark in known.get("marks", ())),
            "backup": BackupPlan.from_plain(known["backup"]) if known.get("backup") else None,
            "scaling": _scaling(known["scaling"]) if known.get("scaling") else None,
            "capacity": Capacity.from_plain(known["capacity"]) if known.get("capacity") else None,
            "custom_endpoints": tuple(map(custom_from_plain, known.get("custom_endpoints", ()))),
            "succession": turns_from_plain(known.get("succession", NO_TURNS)),
            "membership": _membership(known["membership"]) if known.get("membership") else None,
            "residency": Policy.from_dict(known.get("residency", {})),
        }
    )


def _membership(plain: dict[str, Any]) -> Membership:
    known = _known(Membership, plain)
    tails = (_known(LostTail, tail) for tail in known.get("tails", ()))
    return Membership(
        **{
            **known,
            "peers": tuple(Peer(**_known(Peer, peer)) for peer in known.get("peers", ())),
            "turnover": Turnover.from_dict(known["turnover"]) if known.get("turnover") else None,
            "tails": tuple(LostTail(**{**tail, "volume_id": UUID(bytes=tail["volume_id"])}) for tail in tails),
        }
    )


def _deleted(plain: dict[str, Any]) -> DeletedCluster:
    known = _known(DeletedCluster, plain)
    return DeletedCluster(**{**known, "cluster": _cluster(known["cluster"])})


def _fleet(plain: dict[str, Any]) -> Fleet:
    known = _known(Fleet, plain)
    return Fleet(
        **{
            **known,
            "fleet_id": UUID(bytes=known["fleet_id"]),
            "azs": tuple(known["azs"]),
            "nodes": tuple(StorageNode(**_known(StorageNode, node)) for node in known["nodes"]),
            "control_volume": _volume(known["control_volume"]),
            "clusters": tuple(_cluster(cluster) for cluster in known["clusters"]),
            "dropped_volumes": tuple(_volume(volume) for volume in known.get("dropped_volumes", ())),
            "deleted": tuple(_deleted(deleted) for deleted in known.get("deleted", ())),
        }
    )
