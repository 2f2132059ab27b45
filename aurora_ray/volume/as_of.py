"""A volume read as of one LSN by anybody, without an epoch and without disturbing its writer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import QuorumLostError
from aurora_ray.volume.node_client import NodeClient, close_all
from aurora_ray.volume.reader import READ_TIMEOUT_S, PageReader, PageRun, check_durable
from aurora_ray.volume.spec import NodeAddress, VolumeSpec, read_quorum
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.volume.recovery import SegmentState

POLL_S: Final = (0.02, 0.5)


class VolumeReader:
    """A volume read as of one LSN, without an epoch and without disturbing its writer."""

    @classmethod
    async def open(
        cls,
        spec: VolumeSpec,
        nodes: Sequence[NodeAddress],
        *,
        lsn: int | None = None,
        timeout_s: float,
        az: str | None = None,
    ) -> VolumeReader:
        """Opens at `lsn` (default: the highest that the nodes know to be durable). 3 of 6 copies suffice.

        Raises OutOfRangeError for an LSN that is not durable, QuorumLostError if too few copies answer.
        """
        clients = {node.node_id: NodeClient(node, spec.volume_id.bytes) for node in nodes}
        try:
            current, vdl = await _current_copies(spec, clients, timeout_s)
            point = vdl if lsn is None else lsn
            check_durable(point, vdl)
        except BaseException:
            await close_all(clients.values())
            raise
        return cls(spec, clients, point, current, az)

    def __init__(
        self,
        spec: VolumeSpec,
        clients: dict[str, NodeClient],
        lsn: int,
        current: dict[str, dict[int, SegmentState]],
        az: str | None,
    ) -> None:
        """Not to be called: see `open`."""
        self.spec = spec
        self.lsn = lsn
        self._clients = clients
        # Any read quorum includes a copy with the group's last durable batch, so none of them is behind by more.
        self._required = {
            group: min(lsn, max(states[group].highest_lsn for states in current.values() if group in states))
            for group in spec.members
        }
        self._reader = PageReader(spec, spec.members, clients, current.__contains__, az=az)

    async def read_pages(
        self, ranges: Sequence[tuple[int, int, int, int]], timeout_s: float = READ_TIMEOUT_S
    ) -> list[PageRun]:
        """The ranges (see PageRange) as of the reader's LSN, in the order asked."""
        return await self._reader.read_pages(ranges, self.lsn, self._required, timeout_s)

    async def read_file_table(self, timeout_s: float = READ_TIMEOUT_S) -> FileTable:
        """The file table as of the reader's LSN."""
        return await self._reader.read_file_table(self.lsn, self._required[0], timeout_s)

    async def close(self) -> None:
        """Lets go of the nodes."""
        await close_all(self._clients.values())


async def _current_copies(
    spec: VolumeSpec, clients: Mapping[str, NodeClient], timeout_s: float
) -> tuple[dict[str, dict[int, SegmentState]], int]:
    """The nodes that carry the newest history seen, with their states, and the VDL; a read quorum of every group."""
    deadline = time.monotonic() + timeout_s
    pause_s = POLL_S[0]
    while True:
        left_s = max(0.05, deadline - time.monotonic())
        answers = await asyncio.gather(
            *(client.state(min(CALL_TIMEOUT_S, left_s)) for client in clients.values()), return_exceptions=True
        )
        states = {
            node: {state.group: state for state in answer}
            for node, answer in zip(clients, answers, strict=True)
            if not isinstance(answer, BaseException)
        }
        everything = [state for own in states.values() for state in own.values()]
        newest = max((state.installed_epoch for state in everything), default=0)
        current = {node: own for node, own in states.items() if all(s.installed_epoch == newest for s in own.values())}
        if all(
            sum(group in current.get(node, ()) for node in nodes) >= read_quorum(len(nodes))
            for group, nodes in spec.members.items()
        ):
            return current, max(state.vdl for state in everything)
        if time.monotonic() + pause_s >= deadline:
            raise QuorumLostError(
                f"volume {spec.volume_id}: only {sorted(current)} answer with the current history, 3 of 6 are needed"
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, POLL_S[1])
