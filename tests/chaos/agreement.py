"""All six copies agree: each node is asked for itself, and every byte must be the same."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aurora_ray.errors import AuroraError, StorageError
from aurora_ray.log.filetable import FileKind, FileTable
from aurora_ray.rpc.node_client import close_all
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.recovery import SegmentState
from aurora_ray.volume.spec import NodeAddress, VolumeSpec
from aurora_ray.volume.volume_node import VolumeNode
from tests.support.polling import poll_until
from tests.support.stack_view import state_of

RUN_PAGES = 32
RUNS_PER_FILE = 3
CALL_TIMEOUT_S = 20.0
ATTEMPTS = 40
PAUSE_S = 0.5


class DisagreementError(AssertionError):
    """Two copies of a volume differ."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was compared: the LSNs, files and pages of each, and how long the slowest copy took to catch up."""

    lsns: tuple[int, ...]
    files: int
    pages: int
    seconds_to_converge: float


async def check_agreement(
    spec: VolumeSpec, nodes: Sequence[NodeAddress], choose: random.Random, *, timeout_s: float, files: int = 30
) -> Agreement:
    """Waits until all copies are complete up to the same LSN, then compares file tables and pages of random files.

    They are compared there and at an older LSN that all still have.

    Only for a volume of one group that nobody writes to much. Raises DisagreementError, or AssertionError if the copies
    do not get there in time.
    """
    clients = {node.node_id: VolumeNode(node, spec.volume_id.bytes) for node in nodes}
    try:
        started_s = time.monotonic()
        goal = max(state.scl for state in (await _states(clients, need_all=False)).values())
        await poll_until(lambda: _complete(clients, goal), timeout_s, interval_s=0.05, what=f"all copies reach {goal}")
        converged_s = time.monotonic() - started_s
        lsns, count, pages = [], 0, 0
        for back in (0.0, choose.random()):
            for attempt in range(ATTEMPTS):
                oldest, newest = await _common_history(spec, nodes)
                lsn = newest - round(back * (newest - oldest))
                try:
                    files_compared, pages_compared = await _compare(clients, spec, lsn, choose, files)
                except StorageError:  # it was collected while we were at it, or damage was met and is being repaired
                    if attempt + 1 == ATTEMPTS:
                        raise
                    await asyncio.sleep(PAUSE_S)  # not synchronisation: bounded tries
                else:
                    lsns.append(lsn)
                    count, pages = count + files_compared, pages + pages_compared
                    break
        return Agreement(tuple(lsns), count, pages, round(converged_s, 3))
    finally:
        await close_all(clients.values())


async def _states(clients: dict[str, VolumeNode], *, need_all: bool) -> dict[str, SegmentState]:
    answers = await asyncio.gather(
        *(client.state(CALL_TIMEOUT_S) for client in clients.values()), return_exceptions=True
    )
    found = {
        node: answer[0] for node, answer in zip(clients, answers, strict=True) if isinstance(answer, list) and answer
    }
    assert found, f"no node answers: {answers}"
    assert len(found) == len(clients) or not need_all, f"not all nodes answer: {answers}"
    return found


async def _complete(clients: dict[str, VolumeNode], goal: int) -> bool:
    """Whether all carry the same history, complete up to `goal`.

    That the last flush is durable they learn from the next one, or from a heartbeat: not without a writer.
    """
    try:
        states = await _states(clients, need_all=True)
    except (AuroraError, AssertionError):
        return False
    histories = {(state.installed_epoch, state.truncations) for state in states.values()}
    return len(histories) == 1 and all(state.scl >= goal for state in states.values())


async def _common_history(spec: VolumeSpec, nodes: Sequence[NodeAddress]) -> tuple[int, int]:
    """The oldest and the newest LSN that all copies answer for."""

    async def look() -> tuple[int, int] | None:
        states = [await state_of(node, spec) for node in nodes]
        known = [state for state in states if state is not None]
        oldest, newest = max(state.floor_lsn for state in known), min(state.vdl for state in known)
        return (oldest, newest) if len(known) == len(states) and oldest <= newest else None

    found = await poll_until(look, 10, interval_s=0.05, what="all copies have some LSN in common")
    assert found is not None
    return found


async def _compare(
    clients: dict[str, VolumeNode], spec: VolumeSpec, lsn: int, choose: random.Random, files: int
) -> tuple[int, int]:
    """Compares what all copies answer for `lsn`; how many files and pages that were."""
    tables = await asyncio.gather(*(client.read_file_table(lsn, lsn, CALL_TIMEOUT_S) for client in clients.values()))
    _same(dict(zip(clients, (table.pack() for table in tables), strict=True)), f"the file table at {lsn}")
    ranges = _ranges(tables[0], choose, files)
    pages = 0
    for part in range(0, len(ranges), 16):
        asked = ranges[part : part + 16]
        request = pb.ReadPagesRequest(volume=spec.volume_id.bytes, lsn=lsn, required_scl=lsn, ranges=asked)
        replies = await asyncio.gather(*(client.read_pages(request, CALL_TIMEOUT_S) for client in clients.values()))
        contents = {node: (reply.kinds, reply.pages) for node, reply in zip(clients, replies, strict=True)}
        _same(contents, f"pages at {lsn} of {[(each.file_id, each.first_page, each.count) for each in asked]}")
        pages += sum(each.count for each in asked)
    return len({each.file_id for each in ranges}), pages


def _ranges(table: FileTable, choose: random.Random, files: int) -> list[pb.PageRange]:
    candidates = [entry for entry in table.entries() if entry.kind is FileKind.FILE and entry.size]
    chosen = choose.sample(candidates, min(files, len(candidates)))
    # The large ones are where the load is.
    chosen += sorted(candidates, key=lambda entry: entry.size)[-5:]
    ranges = []
    for entry in chosen:
        total = -(-entry.size // 8192)
        for _ in range(RUNS_PER_FILE if total > RUN_PAGES else 1):
            first = choose.randrange(max(1, total - RUN_PAGES + 1))
            count = min(RUN_PAGES, total - first)
            ranges.append(pb.PageRange(group=0, file_id=entry.file_id, first_page=first, count=count))
    return ranges


def _same(contents: Mapping[str, object], what: str) -> None:
    if len(set(contents.values())) == 1:
        return
    by_content: dict[object, list[str]] = {}
    for node, content in contents.items():
        by_content.setdefault(content, []).append(node)
    raise DisagreementError(f"{what} differ between {' and '.join(map(str, by_content.values()))}")
