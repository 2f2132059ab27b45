"""Who holds the groups of an open volume: groups that are new, other members, nodes that answer elsewhere.

The decisions of a change are in change.py; this is the I/O around them.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError, NotCompleteError, QuorumLostError, StorageError, UsageError
from aurora_ray.rpc.node_client import close_all
from aurora_ray.volume.spec import ChangeStep
from aurora_ray.volume.takeover import CALL_TIMEOUT_S
from aurora_ray.volume.write.change import CreateCopy, GroupMembers, InstallMembers
from aurora_ray.volume.write.copies import create_segments
from aurora_ray.volume.write.progress import POLL_S, Progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.volume.nodes import Nodes
    from aurora_ray.volume.recovery import Recovered
    from aurora_ray.volume.shape import Shape
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
    from aurora_ray.volume.volume_node import VolumeNode
    from aurora_ray.volume.write.change import Change, Request
    from aurora_ray.volume.write.fanout import Fanout
    from aurora_ray.volume.write.history import History
    from aurora_ray.volume.write.redo import RedoWriter

STEP_TIMEOUT_S: Final = 20.0
FILL_WAIT_S: Final = 10.0


class Members:
    """Owns who the members are, as this epoch installs it; one step of a change at a time."""

    def __init__(
        self, shape: Shape, nodes: Nodes, *, fanout: Fanout, redo: RedoWriter, history: History, recovered: Recovered
    ) -> None:
        self._shape, self._nodes, self._fanout, self._redo, self._history = shape, nodes, fanout, redo, history
        self._held = GroupMembers(recovered.members, recovered.epoch, recovered.end_lsn, recovered.tails)
        self._lock = asyncio.Lock()
        self.progress = Progress(shape, nodes, redo)

    async def prepare(self, client: VolumeNode) -> None:
        """Installs our history on a node that was not there when we opened. Raises FencedError, StorageError."""
        await self._history.install(client, self._held.held)

    async def update_nodes(self, nodes: Iterable[NodeAddress]) -> None:
        """Takes in new addresses (nodes that restarted elsewhere) and new nodes; forgets who is not among them and
        holds nothing."""
        keep = set(self._nodes) if self._lock.locked() else self._fanout.holders
        changed, unused = self._nodes.update(nodes, keep)
        await self._fanout.readdress(changed)
        self._fanout.arrange()
        await close_all(unused)
        self._nodes.tell_each_other()

    async def add_group(self, placement: GroupPlacement, timeout_s: float = 30.0) -> VolumeSpec:
        """Makes the volume one protection group larger; the new specification.

        Persist that before a flush touches the group: a recovery with the old one would refuse to open. Raises
        UsageError for a group that exists or nodes without addresses, QuorumLostError.
        """
        if placement.group in self._shape.members:
            raise UsageError(f"the volume has group {placement.group} already")
        self._require_addresses(placement.all_node_ids)
        spec = self._shape.spec.with_placements([placement])
        created = await create_segments(spec, [placement], self._nodes.clients, timeout_s)
        # The new segments must carry our history: a node that has it for the others may not have it for these.
        await asyncio.gather(
            *(self.prepare(self._nodes[node]) for node in created), return_exceptions=True
        )  # a node that misses it calls itself stale at the first batch
        self._held.add(placement)
        return self._go_by(placement)

    async def change_placement(self, placement: GroupPlacement, timeout_s: float = 30.0) -> VolumeSpec:
        """One step of a change of a group's members (see spec.py): begin, commit or abort; the new specification.

        Give the addresses of new nodes by `update_nodes` before `begin`, and persist each specification before the next
        step. Writing and reading go on. A step that fails has changed nothing here and can be tried again; asking for
        the placement that is in force takes a failed `begin` back. Raises UsageError for anything that is no such step,
        NotCompleteError for a `commit` while 4 of the 6 next members lack log, QuorumLostError.
        """
        self._redo.durable.check()
        async with self._lock:
            # Who has a copy already may be gone for good: whoever opened the volume since then has no address of it.
            held = self._shape.members.get(placement.group, ())
            self._require_addresses(set(placement.all_node_ids).difference(held))
            spec = self._shape.spec
            while (change := self._held.start(placement)) is not None:
                await self._carry_out(change, timeout_s)
                self._held.finish(change, self._redo.end.lsn, self._redo.end.tail(placement.group))
                spec = self._go_by(change.wanted)
            return spec

    async def try_step(self, placement: GroupPlacement, filled: str = "") -> tuple[GroupPlacement, ...]:
        """One step of a change for somebody who asks again and again; who holds the volume's groups then.

        With `filled`, the step waits until that node has all of its copies, and is not taken if that lasts too long.
        Raises what `change_placement` does.
        """
        try:
            if filled:
                await self.progress.wait_caught_up(filled, FILL_WAIT_S)
        except NotCompleteError:
            return self._shape.spec.groups
        return (await self.change_placement(placement, STEP_TIMEOUT_S)).groups

    def _require_addresses(self, nodes: Iterable[str]) -> None:
        unknown = set(nodes) - set(self._nodes)
        if unknown:
            raise UsageError(f"no addresses known for {sorted(unknown)}: call update_nodes first")

    def _go_by(self, placement: GroupPlacement) -> VolumeSpec:
        """From now on a group has these members.

        No flush may come between the first line and the streams' knowing, so the listeners to the VDL are told last.
        """
        moved = self._redo.place(placement)
        spec = self._shape.place(placement)
        self._fanout.arrange()
        if moved:
            self._redo.on_vdl_moved()
        return spec

    async def _carry_out(self, change: Change, timeout_s: float) -> None:
        """Converses with every node until the change is done. Raises NotCompleteError or QuorumLostError."""
        nodes = [node for node in change.nodes if node in self._nodes]
        talks = [asyncio.create_task(self._converse(change, node)) for node in nodes]
        try:
            async with asyncio.timeout(timeout_s):
                while not change.done:
                    ended, _ = await asyncio.wait(talks, return_when=asyncio.FIRST_COMPLETED)
                    for talk in ended:
                        talk.result()  # ends early only by an error that is nobody's to retry
        except TimeoutError:
            kind = NotCompleteError if change.step is ChangeStep.COMMIT else QuorumLostError
            raise kind(f"not within {timeout_s:g} s: {change.describe()}") from None
        finally:
            for talk in talks:
                talk.cancel()
            await asyncio.gather(*talks, return_exceptions=True)

    async def _converse(self, change: Change, node: str) -> None:
        pause_s = POLL_S[0]
        while not change.done:
            request = change.request(node)
            if request is not None:
                # A node that is away, follows somebody else by now, or says what makes no sense.
                with contextlib.suppress(StorageError, MalformedError):
                    await self._ask(change, node, request)
            if change.request(node) == request:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, POLL_S[1])

    async def _ask(self, change: Change, node: str, request: Request) -> None:
        client = self._nodes[node]
        if isinstance(request, CreateCopy):
            spec = self._shape.spec
            await client.create_segments(spec.page_size, [request.group], request.members, CALL_TIMEOUT_S, spec.lineage)
            change.on_created(node)
        elif isinstance(request, InstallMembers):
            members = {**self._held.held, request.group: request.membership}
            change.on_installed(node, await self._history.install(client, members))
        else:
            change.on_state(node, await client.state(CALL_TIMEOUT_S), self._redo.durable.lsn)
