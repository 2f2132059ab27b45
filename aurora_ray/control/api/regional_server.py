"""The control API's calls about global clusters, as `server.py` serves them: thin shells of ControlApi."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.errors import UNDECODABLE, MalformedError

if TYPE_CHECKING:
    from aurora_ray.control.api.calls import ControlApi


def regional_methods(api: ControlApi) -> dict[str, tuple[Callable[[Any], Awaitable[Any]], Any]]:
    """By name: what answers a request, and the kind of request."""

    async def create(request: pb.CreateGlobalClusterRequest) -> pb.Report:
        return _report(await api.create_global(request.global_cluster, request.cluster))

    async def invite(request: pb.InviteRegionRequest) -> pb.Report:
        return _report(await api.invite_region(request.global_cluster, _document(request.guest)))

    async def join(request: pb.JoinGlobalClusterRequest) -> pb.Report:
        done = await api.join_global(
            _document(request.invitation),
            reader_count=request.readers,
            memory_bytes=request.memory_bytes,
            timeout_s=request.timeout_s,
        )
        return _report(done)

    async def wait_copied(request: pb.WaitCopiedRequest) -> pb.Report:
        return _report(await api.wait_copied(request.global_cluster, request.timeout_s))

    async def remove(request: pb.RemoveRegionRequest) -> pb.Report:
        done = await api.remove_region(
            request.global_cluster,
            request.region,
            keep=request.keep,
            force=request.force,
            timeout_s=request.timeout_s,
        )
        return _report(done)

    async def leave(request: pb.LeaveGlobalClusterRequest) -> pb.Report:
        done = await api.leave_global(request.global_cluster, keep=request.keep, timeout_s=request.timeout_s)
        return _report(done)

    async def turn(request: pb.TurnRequest) -> pb.Report:
        done = await api.turn_global(request.global_cluster, request.region, request.way, request.timeout_s)
        return _report(done)

    async def status(request: pb.DescribeRegionRequest) -> pb.Report:
        return _report(await api.global_status(request.global_cluster))

    async def describe(request: pb.DescribeRegionRequest) -> pb.Report:
        return _report(await api.describe_region(request.global_cluster))

    async def exchange(request: pb.ExchangeViewsRequest) -> pb.Report:
        return _report(await api.exchange_views(request.global_cluster, _document(request.view)))

    async def make_way(request: pb.MakeWayRequest) -> pb.Report:
        return _report(await api.make_way(request.global_cluster, request.generation))

    return {
        "CreateGlobalCluster": (create, pb.CreateGlobalClusterRequest),
        "InviteRegion": (invite, pb.InviteRegionRequest),
        "JoinGlobalCluster": (join, pb.JoinGlobalClusterRequest),
        "WaitCopied": (wait_copied, pb.WaitCopiedRequest),
        "RemoveRegion": (remove, pb.RemoveRegionRequest),
        "LeaveGlobalCluster": (leave, pb.LeaveGlobalClusterRequest),
        "TurnGlobalCluster": (turn, pb.TurnRequest),
        "DescribeGlobalCluster": (status, pb.DescribeRegionRequest),
        "DescribeRegion": (describe, pb.DescribeRegionRequest),
        "ExchangeViews": (exchange, pb.ExchangeViewsRequest),
        "MakeWay": (make_way, pb.MakeWayRequest),
        **_residency_methods(api),
    }


def _residency_methods(api: ControlApi) -> dict[str, tuple[Callable[[Any], Awaitable[Any]], Any]]:
    async def set_residency(request: pb.SetResidencyRequest) -> pb.Report:
        where = list(request.regions), list(request.jurisdictions)
        return _report(await api.set_residency(request.global_cluster, *where, timeout_s=request.timeout_s))

    async def limits(request: pb.SetCommitLimitsRequest) -> pb.Report:
        names = ("lease_s", "rpo_s", "failover_after_s")
        given = {name: getattr(request, name) if request.HasField(name) else None for name in names}
        done = await api.set_limits(request.global_cluster, **given, timeout_s=request.timeout_s)
        return _report(done)

    async def forwarding(request: pb.SetForwardingRequest) -> pb.Report:
        done = await api.set_forwarding(request.global_cluster, on=request.on, timeout_s=request.timeout_s)
        return _report(done)

    async def residency(request: pb.DescribeRegionRequest) -> pb.Report:
        return _report(await api.describe_residency(request.global_cluster))

    return {
        "SetCommitLimits": (limits, pb.SetCommitLimitsRequest),
        "SetForwarding": (forwarding, pb.SetForwardingRequest),
        "SetResidency": (set_residency, pb.SetResidencyRequest),
        "DescribeResidency": (residency, pb.DescribeRegionRequest),
    }


def _report(found: Any) -> pb.Report:
    return pb.Report(json=json.dumps(found).encode())


def _document(text: bytes) -> dict[str, Any]:
    """Raises MalformedError."""
    try:
        return dict(json.loads(text))
    except UNDECODABLE as error:
        raise MalformedError(f"what was sent is no JSON object: {error}") from error
