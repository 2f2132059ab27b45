"""From one writer to all its nodes: a stream each, and who gets what of a flush, and when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aurora_ray.log.sizes import write_quorum
from aurora_ray.log.wire import join_append
from aurora_ray.volume.write.deferral import Deferral
from aurora_ray.volume.write.streams import NodeStream

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from aurora_ray.log.flush import Flush
    from aurora_ray.volume.nodes import Nodes
    from aurora_ray.volume.shape import Shape
    from aurora_ray.volume.write.quorum import InFlight
    from aurora_ray.volume.write.streams import StreamOwner


class Fanout:
    """The streams of one open volume. `arrange` follows the shape; nobody else makes or ends streams."""

    def __init__(self, shape: Shape, nodes: Nodes, owner: StreamOwner) -> None:
        self._shape, self._nodes, self._owner = shape, nodes, owner
        self._streams: dict[str, NodeStream] = {}
        self._node_groups: dict[str, frozenset[int]] = {}
        self._uniform = True  # everybody holds all groups: one message for all
        self._deferral = Deferral()
        self._ending: set[asyncio.Task[None]] = set()  # streams to nodes that hold nothing any more

    def arrange(self, installed: Collection[str] = ()) -> None:
        """Has a stream to everybody who holds anything, and to nobody else. `installed`: they carry our history."""
        spec = self._shape.spec
        self._node_groups = {node: frozenset(spec.groups_of(node)) for node in spec.node_ids}
        for node in self._node_groups.keys() & set(self._nodes) - self._streams.keys():
            self._streams[node] = NodeStream(node, self._nodes[node], self._owner, installed=node in installed)
        for node in self._streams.keys() - self._node_groups.keys():
            ending = asyncio.create_task(self._streams.pop(node).close(), name=f"leaving {node}")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        everything = frozenset(self._shape.members)
        self._uniform = all(self._node_groups[node] == everything for node in self._streams)
        # While members change, a write needs a quorum of two sets: everybody gets everything at once.
        steady = self._uniform and all(len(placement.sets) == 1 for placement in spec.groups)
        azs = {node: self._nodes.az(node) for node in self._streams}
        self._deferral.arrange(self._streams, azs, write_quorum(len(self._node_groups)) if steady else None)

    async def readdress(self, changed: Iterable[str]) -> None:
        """These nodes answer elsewhere now."""
        for node in changed:
            if node in self._streams:
                await self._streams[node].use(self._nodes[node])

    @property
    def holders(self) -> Collection[str]:
        """Everybody who holds anything."""
        return self._node_groups.keys()

    def has_our_history(self, node: str) -> bool:
        """Whether a node is known to carry the history of this epoch."""
        stream = self._streams.get(node)
        return stream is not None and stream.installed

    async def close(self) -> None:
        """Ends the streams."""
        self._deferral.close()
        streams = [stream.close() for stream in self._streams.values()]
        await asyncio.gather(*self._ending, *streams, return_exceptions=True)

    # ---- out

    def push(self, flush: Flush, oldest: InFlight) -> None:
        """Hands a flush to the streams; `oldest` is the first that is not durable. Does not block."""
        if not self._uniform:
            self._push_by_node(flush)
            return
        message = join_append(flush.batches.values())
        held = self._deferral.held
        for node, stream in self._streams.items():
            stream.push(flush.end, message, hold=node in held)
        self._deferral.on_submit(oldest)

    def _push_by_node(self, flush: Flush) -> None:
        """For groups on different nodes: nodes that hold the same of the flush's groups share one message."""
        touched = frozenset(flush.batches)
        messages: dict[frozenset[int], bytes] = {}
        for node, stream in self._streams.items():
            held = touched & self._node_groups[node]
            if held:
                if held not in messages:
                    messages[held] = join_append([flush.batches[group] for group in sorted(held)])
                stream.push(flush.end, messages[held])

    def on_durable(self, took_s: float, oldest: InFlight | None) -> None:
        """A flush became durable after `took_s`; `oldest` is the first that is not, if any."""
        self._deferral.on_durable(took_s, oldest)

    def tell_vdl(self, vdl: int, encode: Callable[[int], bytes], *, subscribed_only: bool) -> None:
        """Says the VDL to all nodes without other work, or at once to those that somebody subscribes at.

        `encode` makes a group's batch without records.
        """
        told: dict[frozenset[int], bytes] = {}
        for node, stream in self._streams.items():
            groups = self._node_groups[node]
            if not groups or (subscribed_only and not stream.subscribed):
                continue
            if groups not in told:
                told[groups] = join_append([encode(group) for group in sorted(groups)])
            if subscribed_only:
                stream.push(vdl, told[groups])
            else:
                stream.heartbeat(vdl, told[groups])

    def stats(self) -> dict[str, int]:
        """Counters since opening."""
        streams = self._streams.values()
        return {
            "messages": sum(stream.message_count for stream in streams),
            "reconnects": sum(stream.reconnect_count for stream in streams),
            "hedged_flushes": self._deferral.hedged_count,
            "skipped_flushes": sum(stream.skipped_count for stream in streams),
        }
