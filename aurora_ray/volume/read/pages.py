"""Pages and file tables as of an LSN: from the fastest copy that is complete, with a second one asked when it dawdles.

One node is enough for a read, because the client knows what a copy must have: the last batch of the group at or below
the read point, so "complete up to `required`" (SCL >= required) is all that a node has to check. Only nodes that are
known to carry the current history are asked; on others a chain may look complete with batches that never happened.

The order of preference is the measured latency times the requests that a copy would then have of us, with a handicap
for other Availability Zones; copies that have not acknowledged what is required come after those that have. So many
reads at once, a scan's, are served by several nodes side by side. A request that takes longer than it usually would
(mean plus four deviations) is asked of the next node as well, then, after twice that time, of a third, and so on; the
first answer counts.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import google_crc32c

from aurora_ray.errors import AuroraError, MalformedError, NotCompleteError, OutOfRangeError, QuorumLostError
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.volume.shape import Shape
    from aurora_ray.volume.volume_node import VolumeNode

READ_TIMEOUT_S: Final = 30.0
REQUEST_BYTES_MAX: Final = 16 << 20  # page data asked of a node at once
CALL_TIMEOUT_S: Final = 5.0
HEDGE_S: Final = (0.003, 0.5)  # shortest and longest wait before a second copy is asked
FIRST_HEDGE_S: Final = 0.05  # before anything was measured
OTHER_AZ_FACTOR: Final = 1.5
PENALTY_S: Final = 0.5  # how long a copy that failed or was behind comes last
ROUND_PAUSE_S: Final = (0.01, 0.25)  # between rounds over all copies

_CRC: Final = struct.Struct("<I")

_log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class PageRange(NamedTuple):
    """`page_count` pages of a file from `first_page` on, all in one protection group."""

    group: int
    file_id: int
    first_page: int
    page_count: int


@dataclass(frozen=True, slots=True)
class PageRun:
    """What a range holds. `kinds`: a byte a page, 0 = never written, 1 = in `pages`, which holds those in order."""

    kinds: bytes
    pages: bytes


class _Latency:
    """Smoothed latency of one node and its deviation, in seconds, like TCP's round-trip estimate; what it has to do."""

    __slots__ = ("deviation_s", "mean_s", "running", "shunned_until_s")

    def __init__(self) -> None:
        self.running = 0
        self.mean_s = 0.0
        self.deviation_s = FIRST_HEDGE_S
        self.shunned_until_s = 0.0

    def observe(self, elapsed_s: float) -> None:
        if not self.mean_s:
            self.mean_s, self.deviation_s = elapsed_s, elapsed_s / 2
            return
        self.deviation_s += (abs(elapsed_s - self.mean_s) - self.deviation_s) / 4
        self.mean_s += (elapsed_s - self.mean_s) / 8

    def ended(self, call: asyncio.Future[Any]) -> None:
        """One of the `running` requests has an answer, or nobody waits for it any more."""
        self.running -= 1
        if not call.cancelled():
            call.exception()  # seen: another copy may have answered in the same moment, so that nobody looks

    @property
    def hedge_s(self) -> float:
        if not self.mean_s:
            return FIRST_HEDGE_S
        return min(max(self.mean_s + 4 * self.deviation_s, HEDGE_S[0]), HEDGE_S[1])


class PageReader:
    """Reads from the copies of a volume.

    `eligible` says which nodes are known to carry the current history, `acked` up to where each has acknowledged (a
    hint: they may have more). `on_trouble` is told each time that no copy of a group gave an answer.
    """

    def __init__(
        self,
        shape: Shape,
        clients: Mapping[str, VolumeNode],
        eligible: Callable[[str], bool],
        acked: Callable[[str], int] = lambda _: 0,
        *,
        az: str | None = None,
        on_trouble: Callable[[], object] = lambda: None,
    ) -> None:
        self.hedged_count = 0
        self.read_count = 0
        self.damaged_count = 0  # of answers that did not hold what their checksums said
        self._volume = shape.spec.volume_id.bytes
        self._page_size = shape.spec.page_size
        self._shape = shape
        self._clients = clients
        self._eligible = eligible
        self._acked = acked
        self._az = az
        self._on_trouble = on_trouble
        self._latencies: dict[str, _Latency] = {}

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int, required: Mapping[int, int], timeout_s: float
    ) -> list[PageRun]:
        """The ranges as of `lsn`, in the order asked; `required`: how complete a copy of each group must be.

        Raises OutOfRangeError if `lsn` is no longer kept, QuorumLostError if no copy answers in time.
        """
        by_group: dict[int, list[int]] = {}
        for index, each in enumerate(ranges):
            by_group.setdefault(each.group, []).append(index)
        calls = [
            (chunk, self._read_chunk(group, [ranges[index] for index in chunk], lsn, required[group], timeout_s))
            for group, indices in by_group.items()
            for chunk in self._chunks(indices, ranges)
        ]
        if len(calls) == 1:
            return await calls[0][1]
        runs: list[PageRun | None] = [None] * len(ranges)
        for (chunk, _), answer in zip(calls, await asyncio.gather(*(call for _, call in calls)), strict=True):
            for index, run in zip(chunk, answer, strict=True):
                runs[index] = run
        return [run for run in runs if run is not None]

    async def read_file_table(self, lsn: int, required: int, timeout_s: float) -> FileTable:
        """The file table as of `lsn`."""

        def ask(client: VolumeNode) -> Awaitable[FileTable]:
            return client.read_file_table(lsn, required, timeout_s)

        return await self._from_any(0, required, ask, timeout_s, hedge=False)

    def _chunks(self, indices: Sequence[int], ranges: Sequence[PageRange]) -> list[list[int]]:
        """Splits what is asked of one group, so that no answer exceeds REQUEST_BYTES_MAX (or it is a single range)."""
        chunks: list[list[int]] = [[]]
        nbytes = 0
        for index in indices:
            nbytes += ranges[index].page_count * self._page_size
            if nbytes > REQUEST_BYTES_MAX and chunks[-1]:
                chunks.append([])
                nbytes = ranges[index].page_count * self._page_size
            chunks[-1].append(index)
        return chunks

    async def _read_chunk(
        self, group: int, ranges: Sequence[PageRange], lsn: int, required: int, timeout_s: float
    ) -> list[PageRun]:
        request = pb.ReadPagesRequest(volume=self._volume, lsn=lsn, required_scl=required)
        for asked in ranges:
            request.ranges.add(
                group=asked.group, file_id=asked.file_id, first_page=asked.first_page, count=asked.page_count
            )

        page_count = sum(asked.page_count for asked in ranges)

        async def ask(client: VolumeNode) -> pb.ReadPagesReply:
            reply = await client.read_pages(request, min(CALL_TIMEOUT_S, timeout_s))
            try:
                check_pages(reply, page_count, self._page_size)
            except MalformedError as error:  # another copy is asked
                self.damaged_count += 1
                _log.warning("storage node %s: %s", client.node.node_id, error)
                raise
            return reply

        reply = await self._from_any(group, required, ask, timeout_s, hedge=True)
        return self._split(ranges, reply.kinds, reply.pages)

    def _split(self, ranges: Sequence[PageRange], kinds: bytes, pages: bytes) -> list[PageRun]:
        if len(ranges) == 1:
            return [PageRun(kinds, pages)]
        runs, at, at_byte = [], 0, 0
        for asked in ranges:
            own = kinds[at : at + asked.page_count]
            nbytes = own.count(1) * self._page_size
            runs.append(PageRun(own, pages[at_byte : at_byte + nbytes]))
            at += asked.page_count
            at_byte += nbytes
        return runs

    # ---- which copy

    def _order(self, group: int, required: int) -> list[str]:
        """The eligible copies of a group, best first."""
        now = time.monotonic()

        def cost(node: str) -> tuple[bool, bool, float]:
            latency = self._latencies.setdefault(node, _Latency())
            near = self._az is None or self._clients[node].node.az == self._az
            mean_s = latency.mean_s * (1 if near else OTHER_AZ_FACTOR) + (not near) * 1e-6
            return latency.shunned_until_s > now, self._acked(node) < required, mean_s * (1 + latency.running)

        members = self._shape.members.get(group, ())  # of a new one nobody, which is a trouble, and so asked for
        nodes = [node for node in members if node in self._clients and self._eligible(node)]
        return sorted(nodes, key=cost)

    async def _from_any(
        self,
        group: int,
        required: int,
        ask: Callable[[VolumeNode], Awaitable[_Answer]],
        timeout_s: float,
        *,
        hedge: bool,
    ) -> _Answer:
        """Rounds over the copies, best first, until one answers."""
        self.read_count += 1
        deadline = time.monotonic() + timeout_s
        pause_s = ROUND_PAUSE_S[0]
        while True:
            errors: list[AuroraError] = []
            found = await self._cascade(self._order(group, required), ask, errors, hedge=hedge)
            if found is not None:
                return found
            if errors and all(isinstance(error, OutOfRangeError) for error in errors):
                raise errors[0]
            if time.monotonic() + pause_s >= deadline:
                reason = f": {errors[-1]}" if errors else ""
                raise QuorumLostError(f"no copy of group {group} answered within {timeout_s:g} s{reason}")
            self._on_trouble()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, ROUND_PAUSE_S[1])

    async def _cascade(
        self,
        nodes: list[str],
        ask: Callable[[VolumeNode], Awaitable[_Answer]],
        errors: list[AuroraError],
        *,
        hedge: bool,
    ) -> _Answer | None:
        """Asks the first node; the next one as well when an answer fails or takes long. None when all have failed."""
        left = iter(nodes)
        first = next(left, None)
        if first is None:
            return None
        wait_s = self._latencies[first].hedge_s
        running = {self._begin(first, ask)}
        try:
            while running:
                done, running = await asyncio.wait(
                    running, timeout=wait_s if hedge else None, return_when=asyncio.FIRST_COMPLETED
                )
                for call in done:
                    error = call.exception()
                    if error is None:
                        return call.result()
                    if not isinstance(error, AuroraError):
                        raise error
                    errors.append(error)
                node = next(left, None)
                if node is None:
                    hedge = False
                    continue
                running.add(self._begin(node, ask))
                self.hedged_count += not done
                wait_s *= 2
        finally:
            for call in running:
                call.cancel()
        return None

    def _begin(self, node: str, ask: Callable[[VolumeNode], Awaitable[_Answer]]) -> asyncio.Future[_Answer]:
        """Counted from now on: of reads that begin in the same moment, each shall see the ones before it."""
        latency = self._latencies[node]
        latency.running += 1
        call = asyncio.ensure_future(self._timed(node, ask))
        call.add_done_callback(latency.ended)
        return call

    async def _timed(self, node: str, ask: Callable[[VolumeNode], Awaitable[_Answer]]) -> _Answer:
        latency = self._latencies[node]
        start = time.monotonic()
        try:
            answer = await ask(self._clients[node])
        except asyncio.CancelledError:  # the other copy was faster, or nobody waits any more
            latency.observe(max(time.monotonic() - start, latency.mean_s))
            raise
        except AuroraError as error:
            latency.shunned_until_s = time.monotonic() + PENALTY_S
            if not isinstance(error, NotCompleteError):
                latency.observe(max(time.monotonic() - start, 2 * latency.mean_s))
            raise
        latency.observe(time.monotonic() - start)
        return answer


def check_pages(reply: pb.ReadPagesReply, page_count: int, page_size: int) -> None:
    """Whether an answer is one to what was asked, and each page what it was on the node. Raises MalformedError."""
    kinds, pages, crcs = reply.kinds, reply.pages, reply.crcs
    carried = kinds.count(1)
    if len(kinds) != page_count or carried + kinds.count(0) != page_count or len(pages) != carried * page_size:
        raise MalformedError(f"{len(kinds)} page kinds and {len(pages)} bytes do not answer what was asked")
    if len(crcs) != carried * _CRC.size:
        raise MalformedError(f"{len(crcs)} bytes of checksums came with {carried} pages")
    for number, (crc,) in enumerate(_CRC.iter_unpack(crcs)):
        if google_crc32c.value(pages[number * page_size : (number + 1) * page_size]) != crc:
            raise MalformedError(f"page {number} of an answer of {carried} was damaged on the way")


def check_durable(lsn: int, vdl: int) -> None:
    """Raises OutOfRangeError for a read point above what is durable."""
    if lsn > vdl:
        raise OutOfRangeError(f"LSN {lsn} is not durable: the volume is known to be durable up to {vdl}")
