"""Who holds the groups of an open volume: making copies, changing the members, and watching them catch up.

The decisions of a change are in change.py; this is the I/O around them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError, NotCompleteError, QuorumLostError, StorageError, UsageError
from aurora_ray.volume.spec import ChangeStep, write_quorum
from aurora_ray.volume.takeover import CALL_TIMEOUT_S
from aurora_ray.volume.write.change import CreateCopy, GroupMembers, InstallMembers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.log.segment_rules import Membership
    from aurora_ray.volume.node_client import NodeClient
    from aurora_ray.volume.recovery import Recovered
    from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
    from aurora_ray.volume.write.change import Change, Request
    from aurora_ray.volume.write.volume import Volume

CREATE_GRACE_S: Final = 2.0  # for slow nodes, when enough have created their copies
POLL_S: Final = (0.02, 0.5)
STEP_TIMEOUT_S: Final = 20.0
FILL_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """How far the copies of one node are. `behind_bytes`: of log, where it is furthest behind what is durable.

    `bytes_copied`, `bytes_total` and `mb_per_s` (10^6 bytes a second) tell of copies made from peers; `bytes_total` is
    an estimate while they run.
    """

    node_id: str
    complete: bool
    behind_bytes: int
    bytes_copied: int
    bytes_total: int
    mb_per_s: float

    def __str__(self) -> str:
        return (
            f"node {self.node_id} is {self.behind_bytes} bytes of log behind;"
            f" {self.bytes_copied} of {self.bytes_total} bytes copied at {self.mb_per_s:.1f} MB/s"
        )


class MembershipChanges:
    """The steps of one open volume, one at a time."""

    def __init__(self, volume: Volume, recovered: Recovered) -> None:
        self._volume = volume
        self._members = GroupMembers(recovered.members, recovered.epoch, recovered.end_lsn, recovered.tails)
        self._lock = asyncio.Lock()

    @property
    def going_on(self) -> bool:
        """Whether a step is being taken."""
        return self._lock.locked()

    @property
    def members(self) -> Mapping[int, Membership]:
        """In force."""
        return self._members.held

    def add(self, placement: GroupPlacement) -> None:
        """A group that is new."""
        self._members.add(placement)

    async def step(self, placement: GroupPlacement, timeout_s: float) -> VolumeSpec:
        """See `Volume.change_placement`."""
        async with self._lock:
            volume = self._volume
            unknown = set(placement.all_node_ids) - volume.clients.keys()
            if unknown:
                raise UsageError(f"no addresses known for {sorted(unknown)}: call update_nodes first")
            change = self._members.start(placement)
            if change is None:
                return volume.spec
            await self._carry_out(change, timeout_s)
            self._members.finish(change, volume.tail_lsn, volume.group_tails.get(placement.group, 0))
            return volume.go_by(placement)

    async def _carry_out(self, change: Change, timeout_s: float) -> None:
        """Converses with every node until the change is done. Raises NotCompleteError or QuorumLostError."""
        nodes = [node for node in change.nodes if node in self._volume.clients]
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
        volume, client = self._volume, self._volume.clients[node]
        if isinstance(request, CreateCopy):
            await client.create_segments(
                volume.spec.page_size, [request.group], request.members, CALL_TIMEOUT_S, volume.spec.lineage
            )
            change.on_created(node)
        elif isinstance(request, InstallMembers):
            change.on_installed(node, await volume.install(client, {**self.members, request.group: request.membership}))
        else:
            change.on_state(node, await client.state(CALL_TIMEOUT_S), volume.vdl)

    # ---- progress

    async def progress(self, node_id: str, timeout_s: float, targets: Mapping[int, int] | None = None) -> NodeProgress:
        """Of a node's copies towards `targets` (default: what is durable now)."""
        volume = self._volume
        if node_id not in volume.clients:
            raise UsageError(f"no address known for node {node_id}: call update_nodes first")
        if targets is None:
            targets = self._targets(node_id)
        states = {state.group: state for state in await volume.clients[node_id].segments(timeout_s)}
        held = [states[group] for group in targets if group in states]
        copies = [state.copy for state in held if state.HasField("copy")]
        current = len(held) == len(targets) and all(state.installed_epoch == volume.epoch for state in held)
        behind = max((targets[state.group] - state.scl for state in held), default=0)
        return NodeProgress(
            node_id,
            current and behind <= 0,
            max(0, behind),
            sum(copy.bytes_copied for copy in copies),
            sum(copy.bytes_total for copy in copies),
            sum(copy.mb_per_s for copy in copies),
        )

    def _targets(self, node_id: str) -> dict[int, int]:
        tails = self._volume.durable_tails
        return {group: tails.get(group, 0) for group in self._volume.spec.groups_of(node_id)}

    async def wait_caught_up(self, node_id: str, timeout_s: float) -> None:
        """See `Volume.wait_caught_up`."""
        targets = self._targets(node_id)
        deadline = time.monotonic() + timeout_s
        pause_s = POLL_S[0]
        seen = "it does not answer"
        while True:
            try:
                progress = await self.progress(node_id, CALL_TIMEOUT_S, targets)
            except (StorageError, MalformedError) as error:
                seen = str(error)
            else:
                if progress.complete:
                    return
                seen = str(progress)
            if time.monotonic() + pause_s >= deadline:
                raise NotCompleteError(f"node {node_id} did not catch up within {timeout_s:g} s: {seen}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S[1])


async def change_members(volume: Volume, placement: GroupPlacement, filled: str = "") -> tuple[GroupPlacement, ...]:
    """One step of a change for somebody who asks again and again; who holds the volume's groups then.

    With `filled`, the step waits until that node has all of its copies, and is not taken if that lasts too long. Raises
    what `Volume.change_placement` does.
    """
    try:
        if filled:
            await volume.wait_caught_up(filled, FILL_WAIT_S)
    except NotCompleteError:
        return volume.spec.groups
    return (await volume.change_placement(placement, STEP_TIMEOUT_S)).groups


# ---- making copies


async def create_segments(
    spec: VolumeSpec, placements: Sequence[GroupPlacement], clients: Mapping[str, NodeClient], timeout_s: float
) -> set[str]:
    """Creates the copies of `placements`; the nodes that have theirs. Raises QuorumLostError for fewer than 4 of 6.

    Nobody creates a missing segment later (an empty one in the place of a lost one would make redo vanish), so nodes
    that are slow get a while longer when the quorum is there already. Raises UnsupportedLineageError for a volume
    with a parent, without asking any node.
    """
    spec.lineage.require_root("to create it")

    async def create(client: NodeClient) -> None:
        for placement in placements:
            if client.node.node_id in placement.node_ids:
                await client.create_segments(
                    spec.page_size, [placement.group], placement.node_ids, timeout_s, spec.lineage
                )

    def short_of_quorum() -> list[int]:
        created = {node for node, task in tasks.items() if task.done() and task.exception() is None}
        return [
            placement.group
            for placement in placements
            if len(created.intersection(placement.node_ids)) < write_quorum(len(placement.node_ids))
        ]

    tasks = {node: asyncio.create_task(create(client)) for node, client in clients.items()}
    try:
        deadline = time.monotonic() + timeout_s + 1
        waiting = set(tasks.values())
        while waiting and time.monotonic() < deadline:
            left_s = deadline - time.monotonic()
            _, waiting = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not short_of_quorum():
                deadline = min(deadline, time.monotonic() + CREATE_GRACE_S)
        if short_of_quorum():
            errors = [str(task.exception()) for task in tasks.values() if task.done() and task.exception()]
            raise QuorumLostError(f"too few nodes created groups {short_of_quorum()}: {errors}")
        return {node for node, task in tasks.items() if task.done() and task.exception() is None}
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
