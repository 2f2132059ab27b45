"""The way of the redo to one storage node: one long-lived Append stream that resumes, coalesces and never blocks.

`push` takes a flush that is serialised already (the same bytes object for all six nodes). If the node is idle it goes
out at once; while WINDOW messages are unacknowledged, or one is still being sent, flushes wait and then travel
together as one message: a protobuf message of repeated fields is just its pieces one after the other. So messages
grow with load. A stream may also be asked to hold flushes until `release` (see deferral.py).

What has not been acknowledged is kept and sent again after a reconnect. The backlog of a node that is away or slow is
bounded by giving up flushes that are durable already, oldest first (gossip brings them to the node); flushes that are
not durable yet are never skipped, which is what lets `QuorumTracker` read an acknowledgement as a prefix. How many
bytes can be not durable is bounded by the volume.

A node that lacks our history (it was away, or it is new) is sealed and truncated first; the owner of the stream says
how.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import grpc

from aurora_ray.errors import AuroraError, FencedError, MalformedError, NodeUnreachableError, StaleSegmentError
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from aurora_ray.rpc.stream_client import StreamCall
    from aurora_ray.volume.volume_node import VolumeNode

BACKLOG_BYTES_MAX: Final = 64 << 20
MESSAGE_BYTES_MAX: Final = 4 << 20  # coalescing stops here: other volumes wait for a message; a flush may be larger
FLUSH_BYTES_MAX: Final = 72 << 20  # below the largest gRPC message
WINDOW: Final = 4  # unacknowledged messages under way to one node
BACKOFF_S: Final = (0.02, 2.0)

logger = logging.getLogger(__name__)


class _Outgoing(NamedTuple):
    """A flush for one node, serialised; `end` is also the LSN that acknowledges it."""

    end: int
    message: bytes


class _Unanswered(NamedTuple):
    """A message that was sent at `sent_s` (monotonic) and not acknowledged up to `end` yet."""

    end: int
    sent_s: float


class StreamOwner(Protocol):
    """What a stream asks of the volume."""

    @property
    def vdl(self) -> int:
        """Everything up to here is durable."""

    async def prepare(self, client: VolumeNode) -> None:
        """Installs our history on a node. Raises FencedError if it follows a higher epoch."""

    def on_ack(self, node_id: str, lsn: int) -> None:
        """A node has all it was sent up to `lsn`."""

    def on_subscribed(self) -> None:
        """Somebody follows the log at one more node."""

    def on_node_fenced(self, node_id: str, error: FencedError) -> None:
        """A node follows a higher epoch."""


class NodeStream:
    """The stream to one node. `push` is the hot path: it sends at once, and acknowledgements come in as calls, without
    a task in between. One task connects, again and again."""

    def __init__(self, node_id: str, client: VolumeNode, owner: StreamOwner, *, installed: bool) -> None:
        self.node_id = node_id
        self.installed = installed  # the node carries our history
        self.backlog_bytes = 0
        self.skipped_count = 0  # flushes left to gossip
        self.reconnect_count = 0
        self.message_count = 0
        self.acked_lsn = 0
        self.subscribed = False  # somebody follows the log at the node
        self._smoothed_s = 0.0
        self._reply_count = 0
        self._complaint: type[AuroraError] | None = None  # what the log says already of this node
        self._client = client
        self._owner = owner
        self._waiting: deque[_Outgoing] = deque()  # not sent yet
        self._sent: deque[_Outgoing] = deque()  # sent, not acknowledged
        self._messages: deque[_Unanswered] = deque()
        self._held = False  # what waits is to stay until it is released
        self._call: StreamCall | None = None  # while the stream is whole
        self._closing = False
        self._task = asyncio.create_task(self._run(), name=f"append to {node_id}")

    @property
    def latency_s(self) -> float:
        """From sending a message to its acknowledgement, smoothed; at least what the oldest one on its way has taken.

        Infinite after the stream broke, until a message is acknowledged again.
        """
        if not self._messages:
            return self._smoothed_s
        return max(self._smoothed_s, time.monotonic() - self._messages[0].sent_s)

    # ---- in

    def push(self, flush_end: int, message: bytes, *, hold: bool = False) -> None:
        """Queues a flush. Never blocks; in LSN order.

        `hold`: it may wait for the next flush without, or for `release`, unless somebody follows the log at the node.
        Flushes before it are not held up by that.
        """
        self._held = hold and not self.subscribed and (self._held or not self._waiting)
        self._waiting.append(_Outgoing(flush_end, message))
        self.backlog_bytes += len(message)
        self._send_waiting()
        if self.backlog_bytes > BACKLOG_BYTES_MAX:
            self._shed(self._owner.vdl)

    def release(self) -> None:
        """Sends what was held back."""
        self._held = False
        self._send_waiting()

    def heartbeat(self, lsn: int, message: bytes) -> None:
        """Sends a message without redo, unless there is other work for the node anyway."""
        if not self._waiting and not self._sent:
            self.push(lsn, message)

    async def use(self, client: VolumeNode) -> None:
        """The node answers elsewhere now."""
        await self.close()
        self._rewind()
        self._client = client
        self._closing = False
        self._task = asyncio.create_task(self._run(), name=f"append to {self.node_id}")

    async def close(self) -> None:
        """Ends the stream."""
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _shed(self, vdl: int) -> None:
        for queue in (self._sent, self._waiting):
            while queue and queue[0].end <= vdl and self.backlog_bytes > BACKLOG_BYTES_MAX:
                self.backlog_bytes -= len(queue.popleft().message)
                self.skipped_count += 1

    # ---- out

    async def _run(self) -> None:
        backoff_s = BACKOFF_S[0]
        # A cancellation that arrives while a call is being prepared is lost inside grpc.aio: look at the flag as well.
        while not self._closing:
            replies_before = self._reply_count
            try:
                if not self.installed:
                    await self._owner.prepare(self._client)
                    self.installed = True
                await self._exchange(await self._client.append(self))
            except FencedError as error:
                self._owner.on_node_fenced(self.node_id, error)
                backoff_s = BACKOFF_S[1]
            except StaleSegmentError:
                self.installed = False
            except NodeUnreachableError as error:
                logger.debug("append stream: %s", error)
            except MalformedError:
                logger.exception("storage node %s refuses what we send", self.node_id)
            except AuroraError as error:
                # Once for each state that the node is in, not once for each try.
                level = logging.DEBUG if type(error) is self._complaint else logging.WARNING
                logger.log(level, "append stream: %s", error)
                self._complaint = type(error)
            self._smoothed_s = math.inf
            if self._reply_count > replies_before:  # a node that only refuses is not hurried
                backoff_s = BACKOFF_S[0]
            self._rewind()
            self.reconnect_count += 1
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311 - not a secret
            backoff_s = min(backoff_s * 2, BACKOFF_S[1])

    async def _exchange(self, call: StreamCall) -> None:
        """Sends and takes acknowledgements until the stream breaks; always raises."""
        self._call = call
        try:
            if self._closing:  # see `_run`
                raise asyncio.CancelledError
            self._send_waiting()
            end = await call.ended()
        finally:
            self._call = None
            self.subscribed = False
            call.cancel()
        if end.code is grpc.StatusCode.OK:
            raise NodeUnreachableError(f"storage node {self.node_id} ended the stream")
        raise end.error

    def _send_waiting(self) -> None:
        call = self._call
        while self._waiting and not self._held and len(self._messages) < WINDOW:
            if call is None or not call.writable:
                return
            call.send_message(self._take())

    def on_writable(self) -> None:
        """There is room on the connection again."""
        self._send_waiting()

    def _take(self) -> bytes:
        """The next message, out of what waits."""
        waiting, sent = self._waiting, self._sent
        first = waiting.popleft()
        sent.append(first)
        end, message = first
        if waiting:
            parts, nbytes = [message], len(message)
            while waiting and nbytes + len(waiting[0].message) <= MESSAGE_BYTES_MAX:
                entry = waiting.popleft()
                sent.append(entry)
                parts.append(entry.message)
                end = entry.end
                nbytes += len(entry.message)
            message = b"".join(parts)
        self._messages.append(_Unanswered(end, time.monotonic()))
        self.message_count += 1
        return message

    def on_message(self, reply: bytes) -> None:
        """An acknowledgement."""
        answer = pb.AppendReply.FromString(reply)
        lsn: int = answer.acked_lsn
        newly_subscribed = answer.subscribed and not self.subscribed
        self.subscribed = answer.subscribed
        sent, messages = self._sent, self._messages
        while sent and sent[0].end <= lsn:
            self.backlog_bytes -= len(sent.popleft().message)
        while messages and messages[0].end <= lsn:
            self._observe(time.monotonic() - messages.popleft().sent_s)
        self._send_waiting()
        self.acked_lsn = lsn
        self._reply_count += 1
        self._complaint = None
        self._owner.on_ack(self.node_id, lsn)
        if newly_subscribed:
            self._owner.on_subscribed()

    def _observe(self, took_s: float) -> None:
        known_s = self._smoothed_s
        self._smoothed_s = known_s + (took_s - known_s) / 16 if 0 < known_s < math.inf else took_s

    def _rewind(self) -> None:
        """What was not acknowledged waits again."""
        self._held = False
        self._messages.clear()
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
