"""The one client of storage nodes: a channel to a node, and its calls, for volumes, the control plane and peers.

What all calls have in common is here and nowhere else: a deadline, the proof of the fleet's secret, the distance to
another region, the caller's trace, and errors of our own tree (`calls.py`, `status.py`), also when the channel is
closed under a call. Messages go in and come out as they are on the wire; what they mean to a volume, or to a plan of
the control plane, is for those who ask.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aurora_ray.errors import NodeTimeoutError
from aurora_ray.rpc.admission import Caller
from aurora_ray.rpc.channel import open_channel
from aurora_ray.rpc.link import HOME
from aurora_ray.rpc.stream_client import StreamEndedError, open_stream
from aurora_ray.rpc.tracing import trace_metadata
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aurora_ray.rpc.calls import Replies
    from aurora_ray.rpc.link import Abroad
    from aurora_ray.rpc.stream_client import Receiver, StreamCall

_Reply = TypeVar("_Reply")

APPEND_METHOD: Final = "/aurora_ray.storage.v1.StorageNode/Append"
# A gRPC server in the middle of stopping may leave a call without an answer. So its first tries are short: who waits
# for a node that restarts is not kept by its end.
APPEND_PORT_TIMEOUTS_S: Final = (0.25, 0.5, 1.0, 2.0)

# How long a call may take, unless who calls has less time, or more.
CHANGE_S: Final = 10.0  # what the node writes to its disk for
LOOK_S: Final = 2.0  # what it answers out of its memory
FORK_S: Final = 20.0  # it may have to fetch from its peers first
CONTENT_S: Final = 30.0  # pages, log, a file table, or a digest of them


class NodeClient:
    """A channel to one storage node. It connects by itself, and again after losses.

    Every call has a deadline and raises from our own tree: NodeUnreachableError and NodeTimeoutError if the node does
    not answer, ImpostorError if somebody else does, and what the node refuses for, by its reason.
    """

    def __init__(self, node_id: str, address: str, abroad: Abroad = HOME) -> None:
        """`abroad`: how the node's fleet is reached, if it is not ours."""
        self.node_id, self.address = node_id, address
        self._secret = abroad.secret
        channel = self._channel = open_channel(address, node_id, abroad.secret, abroad.link)
        # Generated stubs serve both kinds of channel, which their types cannot say.
        self._stub: Any = StorageNodeStub(channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Ends all calls: they raise NodeUnreachableError."""
        await self._channel.close()

    # ---- volumes and their segments

    async def create_segments(
        self, request: pb.CreateSegmentsRequest, timeout_s: float = CHANGE_S, *, until_ready: bool = False
    ) -> None:
        """Makes copies of groups, empty ones; harmless if they are there. `until_ready`: once the node is reached."""
        await self._ask(request, pb.CreateSegmentsReply, timeout_s, until_ready=until_ready)

    async def fork(self, request: pb.ForkRequest, timeout_s: float = FORK_S) -> None:
        """Makes copies of groups out of the parent's; harmless if they are there.

        Raises StaleSegmentError, NotCompleteError, OutOfRangeError, UnknownVolumeError where the parent's will not do.
        """
        await self._ask(request, pb.ForkReply, timeout_s)

    async def locate(self, request: pb.LocateRequest, timeout_s: float = LOOK_S) -> pb.LocateReply:
        """Where the log of each group stands at an LSN or a time."""
        return await self._ask(request, pb.LocateReply, timeout_s)

    async def drop_volume(self, request: pb.DropVolumeRequest, timeout_s: float = CHANGE_S) -> pb.DropVolumeReply:
        """Puts a volume, or some of its groups, into the graveyard. Raises UnknownVolumeError."""
        return await self._ask(request, pb.DropVolumeReply, timeout_s)

    async def list_graveyard(
        self, request: pb.ListGraveyardRequest, timeout_s: float = CHANGE_S
    ) -> pb.ListGraveyardReply:
        """What was put aside."""
        return await self._ask(request, pb.ListGraveyardReply, timeout_s)

    async def restore_volume(
        self, request: pb.RestoreVolumeRequest, timeout_s: float = CHANGE_S
    ) -> pb.RestoreVolumeReply:
        """Brings a dropped volume back as it was. Raises UnknownVolumeError."""
        return await self._ask(request, pb.RestoreVolumeReply, timeout_s)

    async def purge_graveyard(
        self, request: pb.PurgeGraveyardRequest, timeout_s: float = CHANGE_S
    ) -> pb.PurgeGraveyardReply:
        """Destroys what is named, before its time."""
        return await self._ask(request, pb.PurgeGraveyardReply, timeout_s)

    async def set_peers(self, addresses: Mapping[str, str], timeout_s: float = CHANGE_S) -> None:
        """Tells the node where the others are (node id -> host:port)."""
        await self._ask(pb.SetPeersRequest(addresses=dict(addresses)), pb.SetPeersReply, timeout_s)

    async def set_retention(self, request: pb.SetRetentionRequest, timeout_s: float = CHANGE_S) -> None:
        """For how long history of a volume is kept from now on. Raises UnknownVolumeError."""
        await self._ask(request, pb.SetRetentionReply, timeout_s)

    async def set_read_point(
        self, volume: bytes, holder: str, lsn: int, lease_s: float, timeout_s: float = LOOK_S
    ) -> float:
        """Keeps what a reader at `lsn` needs for `lease_s`, or until the holder names another LSN; 0: no longer.

        For how long it is granted, in seconds: less, if the node allows less. Raises OutOfRangeError if it is gone.
        """
        request = pb.SetReadPointRequest(volume=volume, holder=holder, lsn=lsn, lease_ms=int(1000 * lease_s))
        reply = await self._ask(request, pb.SetReadPointReply, timeout_s)
        return min(lease_s, reply.lease_ms / 1e3)

    async def state(
        self, volume: bytes = b"", timeout_s: float = CHANGE_S, *, until_ready: bool = False
    ) -> pb.StateReply:
        """What the node has, of one volume or of all, and how it fares. `until_ready`: once it is reached."""
        return await self._ask(pb.StateRequest(volume=volume), pb.StateReply, timeout_s, until_ready=until_ready)

    # ---- redo and pages

    async def append(self, receiver: Receiver) -> StreamCall:
        """Opens an Append stream. Bytes in, bytes out: a flush is serialised once for all nodes. See `ended`.

        Raises StorageError.
        """
        port = await self._append_port()
        host = self.address.rpartition(":")[0].strip("[]")
        try:
            caller = Caller(self.node_id, str(port), self._secret, self._channel.caller.challenge)
            return await open_stream(host, port, APPEND_METHOD, receiver, caller)
        except StreamEndedError as error:
            raise error.error from error

    async def _append_port(self) -> int:
        *tries, last_try_s = APPEND_PORT_TIMEOUTS_S
        request = pb.AppendPortRequest()
        for timeout_s in tries:
            with contextlib.suppress(NodeTimeoutError):
                return (await self._ask(request, pb.AppendPortReply, timeout_s)).port
        return (await self._ask(request, pb.AppendPortReply, last_try_s)).port

    async def read_pages(self, request: pb.ReadPagesRequest, timeout_s: float = CONTENT_S) -> pb.ReadPagesReply:
        """Pages as of an LSN."""
        return await self._ask(request, pb.ReadPagesReply, timeout_s)

    async def read_file_table(self, volume: bytes, lsn: int, required_scl: int, timeout_s: float = CONTENT_S) -> bytes:
        """The file table as of an LSN, packed."""
        request = pb.ReadFileTableRequest(volume=volume, lsn=lsn, required_scl=required_scl)
        return b"".join([chunk.data async for chunk in self._stream(request, timeout_s)])

    def subscribe(self, volume: bytes, group: int, after_lsn: int) -> Replies:
        """LogChunks of a group's durable log behind `after_lsn`, without end."""
        request = pb.SubscribeRequest(volume=volume, group=group, after_lsn=after_lsn)
        replies: Replies = self._stub.Subscribe(request)  # not part of the trace in which it begins
        return replies

    # ---- recovery

    async def seal(self, request: pb.SealRequest, timeout_s: float = CHANGE_S) -> pb.SealReply:
        """Asks for a promise."""
        return await self._ask(request, pb.SealReply, timeout_s)

    async def truncate(self, request: pb.TruncateRequest, timeout_s: float = CHANGE_S) -> pb.TruncateReply:
        """Installs a history. Raises FencedError if the node has promised itself to others."""
        return await self._ask(request, pb.TruncateReply, timeout_s)

    async def catch_up(self, request: pb.CatchUpRequest, timeout_s: float) -> pb.CatchUpReply:
        """Has the node fetch from its peers; answers when it is there or the request's own time is up."""
        return await self._ask(request, pb.CatchUpReply, timeout_s)

    # ---- between peers

    def fetch_log(self, request: pb.FetchLogRequest, timeout_s: float = CONTENT_S) -> Replies:
        """LogChunks: stored batches, whether durable or not."""
        return self._stream(request, timeout_s)

    def copy_segment(self, request: pb.CopySegmentRequest, timeout_s: float = CONTENT_S) -> Replies:
        """PageChunks: the pages in a range of keys as of an LSN."""
        return self._stream(request, timeout_s)

    async def outline_segment(
        self, request: pb.OutlineSegmentRequest, timeout_s: float = CONTENT_S
    ) -> pb.OutlineSegmentReply:
        """Where to cut a segment's keys into ranges of about equal size."""
        return await self._ask(request, pb.OutlineSegmentReply, timeout_s)

    async def digest(
        self, request: pb.DigestRequest, timeout_s: float = CONTENT_S, *, until_ready: bool = False
    ) -> pb.DigestReply:
        """A digest of the content in a range of keys as of an LSN. `until_ready`: once the node is reached."""
        return await self._ask(request, pb.DigestReply, timeout_s, until_ready=until_ready)

    # ---- what all have in common

    async def _ask(self, request: Any, reply: type[_Reply], timeout_s: float, *, until_ready: bool = False) -> _Reply:
        """One request, one reply. A node that cannot be reached is told of at once, unless it is waited for."""
        answer: _Reply = await self._method(request)(
            request, timeout=timeout_s, metadata=trace_metadata(), wait_for_ready=until_ready or None
        )
        assert isinstance(answer, reply)  # noqa: S101 - of an RPC named X, the messages are XRequest and XReply
        return answer

    def _stream(self, request: Any, timeout_s: float) -> Replies:
        replies: Replies = self._method(request)(request, timeout=timeout_s, metadata=trace_metadata())
        return replies

    def _method(self, request: Any) -> Any:
        return getattr(self._stub, request.DESCRIPTOR.name.removesuffix("Request"))


class NodeClients:
    """A client a storage node, kept open while the node's address stays the same. For one event loop."""

    def __init__(self) -> None:
        self._clients: dict[str, NodeClient] = {}
        self._left: list[NodeClient] = []  # of addresses where a node is no longer; calls on them may still run

    def get(self, node_id: str, address: str) -> NodeClient:
        """The node's client; another one when the node has moved."""
        known = self._clients.get(node_id)
        if known is not None and known.address == address:
            return known
        if known is not None:
            self._left.append(known)
        fresh = self._clients[node_id] = NodeClient(node_id, address)
        return fresh

    async def forget(self, node_id: str) -> None:
        """A node ended: the next one at the same address gets a connection of its own, without the old one's delays."""
        known = self._clients.pop(node_id, None)
        if known is not None:
            self._left.append(known)
        await self.close_left()

    async def keep(self, addresses: Mapping[str, str]) -> None:
        """Closes the clients of all nodes but these (node id -> host:port), and of those that are elsewhere now."""
        for node_id, client in tuple(self._clients.items()):
            if addresses.get(node_id) != client.address:
                self._left.append(self._clients.pop(node_id))
        await self.close_left()

    async def close_left(self) -> None:
        """Closes the clients of addresses that are no longer in use; calls that still run on them end."""
        left, self._left = self._left, []
        await close_all(left)

    async def close(self) -> None:
        """Closes all."""
        await self.keep({})


class Closable(Protocol):
    """A client."""

    async def close(self) -> None:
        """Ends all calls."""


async def close_all(clients: Iterable[Closable]) -> None:
    """Closes every one, whatever the others do."""
    await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
