"""A storage node: a gRPC server over the segments in one data directory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from aurora_ray.errors import ConfigurationError, UsageError
from aurora_ray.rpc.admission import Doorkeeper
from aurora_ray.rpc.channel import bind, make_server
from aurora_ray.rpc.process import raise_descriptor_limit
from aurora_ray.rpc.stream_server import StreamServer
from aurora_ray.storage.disk.datadir import DataDir
from aurora_ray.storage.heal.gossip import Gossip
from aurora_ray.storage.heal.peers import Peers
from aurora_ray.storage.heal.repair import Repairer
from aurora_ray.storage.heal.scrub import Scrubber
from aurora_ray.storage.node.node import Node, free_disk_bytes
from aurora_ray.storage.server.append import Appender
from aurora_ray.storage.server.background import Background
from aurora_ray.storage.server.service import StorageService, streaming, unary
from aurora_ray.storage.server.sharing import Sharing
from aurora_ray.storage.supervised import end, supervised
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aurora_ray.storage.config import StorageConfig

_log = logging.getLogger(__name__)

SERVICE_NAME: Final = "aurora_ray.storage.v1.StorageNode"


class StorageServer:
    """`await start()` serves whatever the data directory holds; `await stop()` closes it again."""

    def __init__(
        self,
        config: StorageConfig,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        self._config = config
        self.node = Node(config, clock, free_bytes)
        self.peers = Peers(self.node)
        self.repairer = Repairer(self.node, self.peers)
        self.gossip = Gossip(self.node, self.peers, self.repairer.copy)
        self.background = Background(self.node)
        self.scrubber = Scrubber(self.node, self.peers)
        self._appender = Appender(self.node)
        self._sharing = Sharing(self._appender)
        # Each server process draws its own challenge, which both of its doors want to see answered.
        self._doorkeeper = Doorkeeper(config.node_id, self._count_refusal)
        self._append_server = StreamServer(
            {f"/{SERVICE_NAME}/Append": self._sharing.call}, config.node_id, self._doorkeeper
        )
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._data_dir: DataDir | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Opens the segments and listens; the address "host:port".

        Raises ConfigurationError if the port is taken or the directory is not this node's; then all is closed again.
        """
        if self._server is not None:
            raise UsageError("the storage server has been started already")
        raise_descriptor_limit()
        self._data_dir = DataDir(self._config.data_dir, self._config.node_id)
        self.node.reclaim = self._data_dir.reclaim
        server, guard = make_server(self._doorkeeper)
        try:
            self.node.open()
            self.node.append_port = await self._append_server.start(self._config.host, self._config.append_port)
            checks = self._register(server)
            port = self._bind(server)
            guard.door = str(port)
            # A moment only; interrupted in the middle, grpc's server can neither go on nor stop.
            starting = asyncio.ensure_future(server.start())
            try:
                await asyncio.shield(starting)
            finally:
                await starting
            await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        except BaseException:
            await server.stop(None)
            await self._append_server.stop()
            self.node.close()
            self._data_dir.release()
            raise
        self._server = server
        self.address = f"{self._config.host}:{port}"
        for name, work in self.long_work().items():
            supervision = supervised(name, work, self.node.counters)
            self._tasks.append(asyncio.create_task(supervision, name=f"storage-{name}"))
        _log.info("storage node %s serves %s at %s", self._config.node_id, self._config.data_dir, self.address)
        return self.address

    def long_work(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What goes on for as long as the node serves, whatever fails meanwhile."""
        return {
            "background": self.background.run,
            "gossip": self.gossip.run,
            "repairs": self.repairer.run,
            "scrub": self.scrubber.run,
        }

    async def stop(self, grace_s: float = 1.0) -> None:
        """Ends calls after `grace_s`, then the background, then closes the segments."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._append_server.stop()
        await self._sharing.close()
        await server.stop(grace_s)
        await end(self._tasks)
        self._tasks.clear()
        await asyncio.gather(*self.node.forks, return_exceptions=True)
        await self.peers.close()
        self.node.close()
        if self._data_dir is not None:
            self._data_dir.release()

    def _count_refusal(self) -> None:
        self.node.counters["refused_unauthenticated"] += 1

    def _bind(self, server: grpc.aio.Server) -> int:
        """The configured port; without one the port used last time, so that clients find the node again."""
        host = self._config.host
        if self._config.port:
            return bind(server, host, self._config.port)
        remembered = self.node.remembered_port()
        port = 0
        if remembered:
            with contextlib.suppress(ConfigurationError):
                port = bind(server, host, remembered)
        port = port or bind(server, host, 0)
        self.node.remember_port(port)
        return port

    def _register(self, server: grpc.aio.Server) -> Any:
        """Adds the services; the health servicer."""
        service = StorageService(self.node, self.gossip)
        handlers: dict[str, Any] = {
            # Bytes in, bytes out: redo is never copied through a message object.
            "Append": grpc.stream_stream_rpc_method_handler(self._appender.serve),
            "ReadFileTable": self._stream(service.read_file_table, pb.ReadFileTableRequest, _serialize),
            "Subscribe": self._stream(service.subscribe, pb.SubscribeRequest, None),
            "FetchLog": self._stream(service.fetch_log, pb.FetchLogRequest, None),
            "CopySegment": self._stream(service.copy_segment, pb.CopySegmentRequest, _serialize),
        }
        for name, method, request in (
            ("CreateSegments", service.create_segments, pb.CreateSegmentsRequest),
            ("Fork", service.fork, pb.ForkRequest),
            ("Locate", service.locate, pb.LocateRequest),
            ("SetRetention", service.set_retention, pb.SetRetentionRequest),
            ("DropVolume", service.drop_volume, pb.DropVolumeRequest),
            ("ListGraveyard", service.list_graveyard, pb.ListGraveyardRequest),
            ("RestoreVolume", service.restore_volume, pb.RestoreVolumeRequest),
            ("PurgeGraveyard", service.purge_graveyard, pb.PurgeGraveyardRequest),
            ("ReadPages", service.read_pages, pb.ReadPagesRequest),
            ("Seal", service.seal, pb.SealRequest),
            ("Truncate", service.truncate, pb.TruncateRequest),
            ("CatchUp", service.catch_up, pb.CatchUpRequest),
            ("OutlineSegment", service.outline_segment, pb.OutlineSegmentRequest),
            ("Digest", service.digest, pb.DigestRequest),
            ("SetPeers", service.set_peers, pb.SetPeersRequest),
            ("SetReadPoint", service.set_read_point, pb.SetReadPointRequest),
            ("State", service.state, pb.StateRequest),
            ("AppendPort", service.append_port, pb.AppendPortRequest),
        ):
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                unary(self.node, method), request_deserializer=request.FromString, response_serializer=_serialize
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
        checks: Any = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        return checks

    def _stream(self, method: Any, request: Any, serializer: Any) -> Any:
        return grpc.unary_stream_rpc_method_handler(
            streaming(self.node, method), request_deserializer=request.FromString, response_serializer=serializer
        )


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())
