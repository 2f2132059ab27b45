"""The control API's server: gRPC on loopback, admitted by the fleet's secret. Its calls are thin shells of ControlApi.

`<data_dir>/control.json` (0600): {"address": "127.0.0.1:port", "pid": its process}
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from aurora_ray.control.api.capacity import Scaling
from aurora_ray.control.api.regional_calls import LOOK_TIMEOUT_S
from aurora_ray.control.api.regional_server import regional_methods
from aurora_ray.control.model.custom_endpoints import CustomEndpoint, custom_kind
from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.control.model.scaling import ReaderScaling, scaling_metric
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.durable import replace_file
from aurora_ray.errors import AuroraError
from aurora_ray.rpc.admission import Doorkeeper
from aurora_ray.rpc.channel import bind, make_server
from aurora_ray.rpc.status import CONTROL, REASON_KEY, status_of

if TYPE_CHECKING:
    from aurora_ray.control.api.calls import ControlApi
    from aurora_ray.control.plane import ControlPlane

_log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
SERVICE_NAME: Final = "aurora_ray.control.v1.Control"

_SCALING: Final = ("min_acu", "max_acu", "pause_after_s", "by_powers", "safe_timeout_s", "force")
_Method = Callable[[Any], Awaitable[Any]]


class ControlServer:
    """Belongs to the control plane's event loop."""

    def __init__(self, plane: ControlPlane, api: ControlApi) -> None:
        self._plane = plane
        self._api = api
        self._server: grpc.aio.Server | None = None
        self.refused = 0  # calls without a proof of the fleet's secret

    async def start(self) -> str:
        """Listens on a free port of loopback and says where, in the data directory; the address.

        Raises ConfigurationError, OSError.
        """
        self._plane.refusals.saw(CONTROL, self.refused)
        server, guard = make_server(Doorkeeper(CONTROL, self._refuse))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(method), request_deserializer=request.FromString, response_serializer=_serialize
            )
            for name, (method, request) in self._methods().items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
        port = bind(server, HOST, 0)
        guard.door = str(port)
        await server.start()
        self._server = server
        address = self._plane.regions.own_address = f"{HOST}:{port}"
        text = json.dumps({"address": address, "pid": os.getpid()})
        replace_file(self._plane.config.data_dir / ADDRESS_FILE, text, durable=False)  # made anew at each start
        return address

    async def stop(self) -> None:
        """Ends all calls."""
        if self._server is not None:
            await self._server.stop(None)

    def _refuse(self) -> None:
        self.refused += 1
        self._plane.refusals.saw(CONTROL, self.refused)
        if self.refused & (self.refused - 1) == 0:  # the first, and then ever more seldom
            _log.warning("%d calls of the control API came without the fleet's secret", self.refused)

    def _methods(self) -> dict[str, tuple[_Method, Any]]:
        return {
            "Info": (self._info, pb.InfoRequest),
            "CreateCluster": (self._create, pb.CreateClusterRequest),
            "WaitAvailable": (self._wait_available, pb.WaitAvailableRequest),
            "ListClusters": (self._list, pb.ListClustersRequest),
            "DescribeCluster": (self._describe, pb.DescribeClusterRequest),
            "DeleteCluster": (self._delete, pb.DeleteClusterRequest),
            "FailoverCluster": (self._failover, pb.FailoverClusterRequest),
            "CloneCluster": (self._clone, pb.CloneClusterRequest),
            "BacktrackCluster": (self._backtrack, pb.BacktrackClusterRequest),
            "MarkCluster": (self._mark, pb.MarkClusterRequest),
            "SetBacktrackWindow": (self._set_window, pb.SetBacktrackWindowRequest),
            "SetBackup": (self._set_backup, pb.SetBackupRequest),
            "RestoreBackup": (self._restore_backup, pb.RestoreBackupRequest),
            "AddReaders": (self._add_readers, pb.AddReadersRequest),
            "RemoveReader": (self._remove_reader, pb.RemoveReaderRequest),
            "AutoscaleReaders": (self._autoscale_readers, pb.AutoscaleReadersRequest),
            "CreateEndpoint": (self._create_endpoint, pb.CreateEndpointRequest),
            "DeleteEndpoint": (self._delete_endpoint, pb.DeleteEndpointRequest),
            "ModifyCluster": (self._modify, pb.ModifyClusterRequest),
            "ScaleCluster": (self._scale, pb.ScaleClusterRequest),
            "DescribeUsage": (self._usage, pb.DescribeUsageRequest),
            "ModifyParameters": (self._modify_parameters, pb.ModifyParametersRequest),
            "RepairCluster": (self._repair, pb.RepairClusterRequest),
            "ListDeleted": (self._list_deleted, pb.ListDeletedRequest),
            "RestoreCluster": (self._restore, pb.RestoreClusterRequest),
            "PurgeCluster": (self._purge, pb.PurgeClusterRequest),
            "DescribeState": (self._describe_state, pb.DescribeStateRequest),
            "RepairState": (self._repair_state, pb.RepairStateRequest),
            **regional_methods(self._api),
            "InjectFault": (self._inject_fault, pb.InjectFaultRequest),
            "Metrics": (self._metrics, pb.MetricsRequest),
            "Trail": (self._trail, pb.TrailRequest),
        }

    async def _info(self, _: pb.InfoRequest) -> pb.InfoReply:
        plane = self._plane
        return pb.InfoReply(
            pid=os.getpid(),
            data_dir=str(plane.config.data_dir),
            fleet_id=str(plane.fleet.fleet_id),
            region=plane.fleet.region,
            epoch=plane.declared.epoch,
            open=plane.is_open,
            small=plane.config.small,
        )

    async def _create(self, request: pb.CreateClusterRequest) -> pb.CreateClusterReply:
        created = await self._api.create(
            request.name,
            engine=request.engine,
            version=request.engine_version if request.HasField("engine_version") else None,
            bin_dir=request.bin_dir if request.HasField("bin_dir") else None,
            cache_bytes=request.cache_bytes,
            memory_bytes=request.memory_bytes,
            reader_count=request.readers,
            exist_ok=request.exist_ok,
            timeout_s=request.timeout_s,
        )
        return pb.CreateClusterReply(created=created)

    async def _wait_available(self, request: pb.WaitAvailableRequest) -> pb.WaitAvailableReply:
        await self._api.wait_available(request.name, request.timeout_s, all_readers=request.all_readers)
        return pb.WaitAvailableReply()

    async def _list(self, _: pb.ListClustersRequest) -> pb.Report:
        return _report(await self._api.clusters())

    async def _describe(self, request: pb.DescribeClusterRequest) -> pb.Report:
        return _report(await self._api.status(request.name))

    async def _delete(self, request: pb.DeleteClusterRequest) -> pb.DeleteClusterReply:
        await self._api.delete(request.name, request.timeout_s, declare_only=request.declare_only)
        return pb.DeleteClusterReply()

    async def _failover(self, request: pb.FailoverClusterRequest) -> pb.FailoverClusterReply:
        target = request.target if request.HasField("target") else None
        await self._api.failover(request.name, target, request.timeout_s)
        return pb.FailoverClusterReply()

    async def _clone(self, request: pb.CloneClusterRequest) -> pb.Report:
        done = await self._api.clone(
            request.source,
            request.name,
            request.at,
            memory_bytes=request.memory_bytes,
            temporary_s=request.temporary_s,
            version=request.engine_version if request.HasField("engine_version") else None,
            bin_dir=request.bin_dir if request.HasField("bin_dir") else None,
            timeout_s=request.timeout_s,
        )
        return _report(done)

    async def _backtrack(self, request: pb.BacktrackClusterRequest) -> pb.Report:
        return _report(await self._api.backtrack(request.name, request.to, request.timeout_s))

    async def _mark(self, request: pb.MarkClusterRequest) -> pb.Report:
        return _report(await self._api.mark(request.name, request.label, request.timeout_s))

    async def _set_window(self, request: pb.SetBacktrackWindowRequest) -> pb.Report:
        return _report(await self._api.set_window(request.name, request.window_s, request.log_bytes))

    async def _set_backup(self, request: pb.SetBackupRequest) -> pb.Report:
        done = await self._api.set_backup(
            request.name, request.url, request.key_file, request.retention_s, request.location
        )
        return _report(done)

    async def _restore_backup(self, request: pb.RestoreBackupRequest) -> pb.Report:
        done = await self._api.restore_backup(
            request.url,
            request.name,
            cluster=request.cluster,
            at=request.at,
            key_file=request.key_file,
            timeout_s=request.timeout_s,
        )
        return _report(done)

    async def _add_readers(self, request: pb.AddReadersRequest) -> pb.Report:
        done = await self._api.add_readers(
            request.name,
            request.count,
            tier=request.tier,
            memory_bytes=request.memory_bytes,
            timeout_s=request.timeout_s,
        )
        return _report(done)

    async def _remove_reader(self, request: pb.RemoveReaderRequest) -> pb.Report:
        return _report(await self._api.remove_reader(request.instance, request.timeout_s))

    async def _autoscale_readers(self, request: pb.AutoscaleReadersRequest) -> pb.Report:
        rule = None
        if not request.off:
            rule = ReaderScaling(
                request.min,
                request.max,
                scaling_metric(request.metric),
                request.target,
                request.cooldown_out_s,
                request.cooldown_in_s,
            )
        return _report(await self._api.autoscale_readers(request.name, rule))

    async def _scale(self, request: pb.ScaleClusterRequest) -> pb.Report:
        said = {name: getattr(request, name) for name in _SCALING if request.HasField(name)}
        kinds = Scaling(off=request.off, provisioned=tuple(request.provisioned), serverless=tuple(request.serverless))
        return _report(await self._api.scale(request.name, replace(kinds, **said), request.timeout_s))

    async def _usage(self, request: pb.DescribeUsageRequest) -> pb.Report:
        return _report(await self._api.usage(request.name, request.since, request.timeout_s))

    async def _create_endpoint(self, request: pb.CreateEndpointRequest) -> pb.Report:
        wanted = CustomEndpoint(
            request.endpoint, 0, custom_kind(request.kind), tuple(request.members), tuple(request.excluded)
        )
        return _report(await self._api.create_endpoint(request.name, wanted, request.timeout_s))

    async def _delete_endpoint(self, request: pb.DeleteEndpointRequest) -> pb.Report:
        return _report(await self._api.delete_endpoint(request.name, request.endpoint, request.timeout_s))

    async def _modify(self, request: pb.ModifyClusterRequest) -> pb.Report:
        done = await self._api.modify(request.name, request.memory_bytes, request.at_next_start, request.timeout_s)
        return _report(done)

    async def _modify_parameters(self, request: pb.ModifyParametersRequest) -> pb.Report:
        changes = {**dict.fromkeys(request.reset), **request.set}
        return _report(await self._api.set_parameters(request.name, changes))

    async def _repair(self, request: pb.RepairClusterRequest) -> pb.RepairClusterReply:
        await self._api.repair(request.name, list(request.kinds), request.timeout_s)
        return pb.RepairClusterReply()

    async def _list_deleted(self, _: pb.ListDeletedRequest) -> pb.Report:
        return _report(await self._api.graveyard())

    async def _restore(self, request: pb.RestoreClusterRequest) -> pb.RestoreClusterReply:
        return pb.RestoreClusterReply(name=await self._api.restore(request.entry, request.new_name, request.timeout_s))

    async def _purge(self, request: pb.PurgeClusterRequest) -> pb.PurgeClusterReply:
        await self._api.purge(request.entry, request.timeout_s)
        return pb.PurgeClusterReply()

    async def _describe_state(self, _: pb.DescribeStateRequest) -> pb.Report:
        return _report(await self._api.look_at_state())

    async def _repair_state(self, request: pb.RepairStateRequest) -> pb.RepairStateReply:
        version = request.version if request.HasField("version") else None
        return pb.RepairStateReply(clusters=await self._api.repair_state(version))

    async def _inject_fault(self, request: pb.InjectFaultRequest) -> pb.Report:
        for_s = request.for_s if request.HasField("for_s") else None
        if request.verb not in ("heal", "resume") and request.target.partition(":")[0] in ("writer", "reader", "az"):
            await self._api.wait_open(LOOK_TIMEOUT_S)  # else there seems to be no cluster
        strike = self._plane.chaos.strike
        return _report(await strike(request.verb, request.target, request.cluster, for_s, for_good=request.for_good))

    async def _metrics(self, _: pb.MetricsRequest) -> pb.MetricsReply:
        return pb.MetricsReply(text=await self._plane.metrics())

    async def _trail(self, _: pb.TrailRequest) -> pb.Report:
        return _report(self._api.trail())


def _report(found: Any) -> pb.Report:
    return pb.Report(json=json.dumps(found).encode())


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _answering(method: _Method) -> Callable[[Any, Any], Awaitable[Any]]:
    async def serve(request: Any, context: Any) -> Any:
        try:
            return await method(request)
        except AuroraError as error:
            code, reason = status_of(error)
            context.set_trailing_metadata((*(context.trailing_metadata() or ()), (REASON_KEY, reason)))
            await context.abort(code, str(error))
        except Exception as error:
            _log.exception("a call of the control API failed")
            await context.abort(grpc.StatusCode.INTERNAL, f"unexpected {type(error).__name__}: {error}")

    return serve
