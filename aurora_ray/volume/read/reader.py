"""A volume read by anybody, without an epoch and without disturbing its writer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, UsageError
from aurora_ray.rpc.link import HOME
from aurora_ray.rpc.node_client import close_all
from aurora_ray.volume.nodes import Nodes
from aurora_ray.volume.read.copies import ask_copies
from aurora_ray.volume.read.lease import LEASE_S, ReadLease
from aurora_ray.volume.read.pages import READ_TIMEOUT_S, PageReader, check_durable
from aurora_ray.volume.shape import Shape
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.rpc.link import Abroad
    from aurora_ray.volume.read.copies import Copies
    from aurora_ray.volume.read.pages import PageRange, PageRun
    from aurora_ray.volume.spec import NodeAddress, VolumeSpec

REFRESH_S: Final = 0.5  # at most so often are the nodes asked anew who holds what


class VolumeReader:
    """A `PageSource` of what is durable at `read_lsn`, which moves only by `advance`.

    It follows addresses as it is told them (`update_nodes`), and placements as the copies know them: when no copy of a
    group answers, it asks the nodes anew.
    """

    @classmethod
    async def open(
        cls,
        spec: VolumeSpec,
        nodes: Sequence[NodeAddress],
        *,
        lsn: int | None = None,
        timeout_s: float,
        az: str | None = None,
        abroad: Abroad = HOME,
    ) -> VolumeReader:
        """Opens at `lsn` (default: the highest that the nodes know to be durable). 3 of 6 copies suffice.

        `abroad`: how the nodes' fleet is reached, if it is not ours. Raises OutOfRangeError for an LSN that is not
        durable, QuorumLostError if too few copies answer.
        """
        fleet = Nodes(nodes, spec.volume_id.bytes, abroad)
        try:
            copies = await ask_copies(spec, fleet.clients, timeout_s)
            point = copies.vdl if lsn is None else lsn
            check_durable(point, copies.vdl)
        except BaseException:
            await fleet.close()
            raise
        return cls(spec, fleet, point, copies, az)

    def __init__(self, spec: VolumeSpec, nodes: Nodes, lsn: int, copies: Copies, az: str | None) -> None:
        """Not to be called: `open` does."""
        self._shape = Shape(spec)
        self._nodes = nodes
        self._lsn = lsn
        self._tails = dict(copies.highest)  # up to where a group's log reaches at least, as of `read_lsn`
        self._current = set(copies.nodes)  # nodes known to carry a history in which `read_lsn` is durable
        self._take_in(copies)
        self._reads = PageReader(
            self._shape, nodes.clients, self._current.__contains__, az=az, on_trouble=self._on_trouble
        )
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_s = time.monotonic()

    @property
    def spec(self) -> VolumeSpec:
        """The shape as far as it is known."""
        return self._shape.spec

    @property
    def read_lsn(self) -> int:
        """What is read that names no LSN."""
        return self._lsn

    def advance(self, lsn: int, tails: Mapping[int, int]) -> None:
        """Reads are as of `lsn` from now on, which is known to be durable; `tails`: the last flush end, up to there,
        of the groups that were written to since. Raises UsageError for an LSN below `read_lsn`."""
        if lsn < self._lsn:
            raise UsageError(f"the read point cannot go back from {self._lsn} to {lsn}: open another reader")
        for group, tail in tails.items():
            self._tails[group] = max(tail, self._tails.get(group, 0))
        self._lsn = lsn

    async def hold(self, holder: str, *, lsn: int | None = None, lease_s: float = LEASE_S) -> ReadLease:
        """A lease on history from `lsn` (default: `read_lsn`) on, to be released before this is closed; see
        ReadLease.take."""
        point = self._lsn if lsn is None else lsn
        return await ReadLease.take(self._shape, self._nodes, holder=holder, lsn=point, lease_s=lease_s)

    async def update_nodes(self, nodes: Iterable[NodeAddress]) -> None:
        """Takes in where the nodes answer now, new nodes among them."""
        _, unused = self._nodes.update(nodes, keep=())
        await close_all(unused)
        await self.refresh()

    async def refresh(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Asks the nodes anew who holds what and has the current history. Raises QuorumLostError."""
        self._refreshed_s = time.monotonic()
        self._take_in(await ask_copies(self.spec, self._nodes.clients, timeout_s))

    def _take_in(self, copies: Copies) -> None:
        for placement in copies.placements.values():
            self._shape.place(placement)
            self._tails.setdefault(placement.group, 0)
        # A copy that had a history in which `read_lsn` is durable has one for ever: histories only move on.
        self._current |= copies.nodes

    def _on_trouble(self) -> None:
        """No copy of a group answered; reads go on trying meanwhile."""
        running = self._refreshing is not None and not self._refreshing.done()
        if not running and time.monotonic() - self._refreshed_s >= REFRESH_S:
            self._refreshing = asyncio.create_task(self._try_refresh(), name="ask who holds the copies")

    async def _try_refresh(self) -> None:
        with contextlib.suppress(AuroraError):
            await self.refresh()

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S
    ) -> list[PageRun]:
        """The ranges as of `lsn` (default: `read_lsn`), in the order asked.

        Raises OutOfRangeError for an LSN above `read_lsn` or no longer kept, QuorumLostError if no copy answers.
        """
        point = self._read_point(lsn)
        return await self._reads.read_pages(ranges, point, self._required(point), timeout_s)

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S) -> FileTable:
        """The file table as of `lsn`. Raises as `read_pages`."""
        point = self._read_point(lsn)
        return await self._reads.read_file_table(point, self._required(point)[0], timeout_s)

    def _read_point(self, lsn: int | None) -> int:
        if lsn is None:
            return self._lsn
        check_durable(lsn, self._lsn)
        return lsn

    def _required(self, lsn: int) -> dict[int, int]:
        """How complete a copy of each group must be: up to its last batch, or up to `lsn` where it has later ones."""
        return {group: min(lsn, tail) for group, tail in self._tails.items()}

    async def close(self) -> None:
        """Lets go of the nodes."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self._nodes.close()


class AsOf:
    """A `PageSource` that stays at one LSN of a reader which moves on."""

    def __init__(self, reader: VolumeReader) -> None:
        self._reader = reader
        self.read_lsn: int = reader.read_lsn

    @property
    def spec(self) -> VolumeSpec:
        """The volume's shape as far as it is known."""
        return self._reader.spec

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S
    ) -> list[PageRun]:
        """See VolumeReader."""
        return await self._reader.read_pages(ranges, self._point(lsn), timeout_s)

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S) -> FileTable:
        """See VolumeReader."""
        return await self._reader.read_file_table(self._point(lsn), timeout_s)

    def _point(self, lsn: int | None) -> int:
        if lsn is None:
            return self.read_lsn
        check_durable(lsn, self.read_lsn)
        return lsn
