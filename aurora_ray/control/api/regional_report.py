"""What a region tells of its part of a global cluster: to other regions once a second, and to people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from aurora_ray.control.api.regional import member
from aurora_ray.control.model.custom_endpoints import CLUSTER, READER
from aurora_ray.control.model.views import View
from aurora_ray.control.report import status as report
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.errors import AuroraError, UsageError
from aurora_ray.rpc.admission import OURS, Secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.control.model.regional import Membership
    from aurora_ray.control.model.state import DBCluster
    from aurora_ray.control.plane import ControlPlane


async def exchange(plane: ControlPlane, name: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Takes in what another region is, and answers what this one is. Raises UsageError for a stranger, MalformedError.

    It is asked by whoever has this fleet's secret; what it says is believed of its own region alone.
    """
    cluster, known = member(plane, name)
    view = View.from_plain(plain, OURS.secret)
    peer = known.peer(view.region)
    if view.name != name:
        raise UsageError(f"region {view.region} speaks of {view.name}, not of {name}")
    return plane.regions.answer(cluster, known, view).to_plain(Secret.from_text(peer.secret))


async def status(plane: ControlPlane, name: str) -> dict[str, Any]:
    """All regions: what is known here of each; the primary's and lag as they say themselves."""
    cluster, known = member(plane, name)
    regions = [_row(plane, cluster, known)]
    for peer in known.peers:
        request = pb.DescribeRegionRequest(global_cluster=name)
        try:
            told = dict(await plane.regions.ask(peer, "DescribeRegion", request, 2.0))
            regions.append({**told, "reachable": True})
        except AuroraError as error:
            heard = plane.regions.view(name, peer.region)
            row = {"region": peer.region, "reachable": False, "why": str(error), "endpoints": None, "lag_ms": None}
            row["role"] = "primary" if known.primary == peer.region else "secondary"
            row["heard_s"] = round(heard[1], 1) if heard is not None else None
            row |= {"lsn": heard[0].lsn if heard is not None else None, "lag_bytes": None, "state": "unreachable"}
            row |= {"generation": heard[0].generation if heard is not None else None, "readers": None}
            row |= {"data_dir": peer.data_dir, "lost_tails": []}
            regions.append(row)
    return {
        "global": name,
        "cluster": cluster.name,
        "primary": known.primary,
        "asked": plane.fleet.region,
        "writer_dsn": writer_dsn([row["endpoints"][CLUSTER]["dsn"] for row in regions if row["endpoints"]]),
        "regions": sorted(regions, key=lambda row: (row["role"] != "primary", row["region"])),
    }


def writer_dsn(dsns: Sequence[str]) -> str:
    """One that leads to the writer wherever it is: libpq asks one region after the other for it."""
    parts = [urlsplit(dsn) for dsn in dsns]
    user, at, _ = parts[0].netloc.rpartition("@")
    hosts = ",".join(part.netloc.rpartition("@")[2] for part in parts)
    query = "&".join(filter(None, (parts[0].query, "target_session_attrs=read-write")))
    return urlunsplit(parts[0]._replace(netloc=f"{user}{at}{hosts}", query=query))


async def describe(plane: ControlPlane, name: str) -> dict[str, Any]:
    """This region's row of the status, for another region."""
    cluster, known = member(plane, name)
    return _row(plane, cluster, known)


def _row(plane: ControlPlane, cluster: DBCluster, known: Membership) -> dict[str, Any]:
    instances = plane.processes.instances
    owner = instances.get(cluster.writer().instance_id)
    status = owner.status if owner is not None else None
    copy = status.copy if status is not None and cluster.is_secondary else None
    host, ports = plane.config.listen_host, cluster.endpoint_ports()
    endpoints = {}
    for endpoint in (CLUSTER, READER):
        host, port = plane.endpoints.address(cluster, endpoint, instances) if ports.get(endpoint) else (host, 0)
        dsn = report.dsn(cluster, host, port, plane.config.data_dir)
        endpoints[endpoint] = {"host": host, "port": port, "dsn": dsn}
    return {
        "region": plane.fleet.region,
        "role": "secondary" if cluster.is_secondary else "primary",
        "reachable": True,
        "state": report.cluster_state(cluster, instances, plane.attempts),
        "generation": cluster.generation,
        "made_way_for": known.yielded_to or None,
        "lsn": status.vdl if status is not None else None,
        "lag_ms": round(copy.lag_ms, 1) if copy is not None else (0.0 if not cluster.is_secondary else None),
        "lag_bytes": copy.lag_bytes if copy is not None else (0 if not cluster.is_secondary else None),
        "lag_p50_ms": round(copy.p50_ms, 1) if copy is not None else None,
        "lag_p99_ms": round(copy.p99_ms, 1) if copy is not None else None,
        "link_bytes": copy.log_bytes if copy is not None else None,
        "copied": {"extents": copy.extents_done, "of": copy.extents_total} if copy is not None else None,
        "readers": len(cluster.readers()),
        "endpoints": endpoints,
        "data_dir": str(plane.config.data_dir),
        "residency": str(cluster.residency),
        "lease_s": known.lease_s or None,
        "lease_later_s": known.lease_later_s or None,
        "rpo_s": known.rpo_s or None,
        "write_forwarding": known.forwards,
        "promotion": known.promotion,
        "turnover": known.turnover.to_dict() if known.turnover is not None else None,
        "lost_tails": [
            {
                "volume": str(tail.volume_id),
                "after_lsn": tail.after_lsn,
                "end_lsn": tail.end_lsn,
                "bytes": tail.end_lsn - tail.after_lsn,
                "noted_at_s": tail.noted_at_s,
            }
            for tail in known.tails
        ],
        "heard_s": 0.0,
    }
