"""What a node says of the room on its disk, and what it does with little."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from aurora_ray.control.observe.space import space_troubles
from aurora_ray.log import record as rec
from aurora_ray.storage.disk.space import SpaceState, space_of
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import Writer

RESERVE = 1 << 20


@pytest.mark.parametrize(
    ("free", "refuses", "state"),
    [
        (100 << 20, False, SpaceState.OK),
        (2 << 20, False, SpaceState.LOW),
        (1000, False, SpaceState.FULL),
        (1000, True, SpaceState.FULL),
        (100 << 20, True, SpaceState.FAILING),
    ],
)
def test_the_state_tells_little_room_from_none_and_from_failing_writes(free: int, *, refuses: bool, state: str) -> None:
    assert space_of(free, RESERVE, refuses=refuses).state == state


def test_history_beyond_the_least_goes_as_the_disk_fills_up_and_never_the_least() -> None:
    wanted, least = 1000, 100
    kept = [space_of(n * RESERVE, RESERVE, refuses=False).history_bytes(wanted, least) for n in (0, 3, 4, 10, 16, 99)]
    assert kept == [100, 100, 100, 550, 1000, 1000]
    assert space_of(0, RESERVE, refuses=True).history_bytes(50, least) == 50
    assert space_of(0, 0, refuses=False).history_bytes(wanted, least) == wanted


async def test_a_window_gives_way_to_a_disk_that_fills_up_and_that_is_told(start) -> None:
    free = SimpleNamespace(nbytes=1 << 40)
    server = await start(
        disk_reserve_bytes=RESERVE, retention_bytes=1, lease_s_max=0, server={"free_bytes": lambda _: free.nbytes}
    )
    writer = await Writer().open(server)
    asked = pb.Retention(seconds=4_000_000_000, log_bytes=1 << 30)
    keep = pb.SetRetentionRequest(volume=writer.volume, retention=asked)
    await server.stub.SetRetention(keep, timeout=10)
    for number in range(4):
        await server.send(writer.flush(rec.page_full(1, 0, b"%d" % number)))
        await server.send([writer.heartbeat()])
        await server.coalesce(writer)
    volume, segment = server.server.node.volume(writer.volume), server.segment(writer)

    async def collected() -> tuple[int, list[str]]:
        await server.server.background.collect_once(volume, segment)
        reply = await server.stub.State(pb.StateRequest(), timeout=10)
        return segment.meta.floor_lsn, [str(trouble.code) for trouble in space_troubles({"n1": reply})]

    assert await collected() == (0, [])
    free.nbytes = 3 * RESERVE
    floor_lsn, told = await collected()
    assert floor_lsn > 0
    assert told == ["node_without_space", "history_shortened"]
    free.nbytes = 1 << 40
    assert (await collected())[1] == []


@pytest.mark.allowed_logs("node n1: the disk is (full|no longer full)")
async def test_a_node_tells_when_space_runs_out_refuses_before_it_has_and_goes_on_by_itself(start) -> None:
    free = SimpleNamespace(nbytes=1 << 40)
    server = await start(disk_reserve_bytes=RESERVE, server={"free_bytes": lambda _: free.nbytes})
    writer = await Writer().open(server)

    async def says() -> tuple[str, list[str]]:
        reply = await server.stub.State(pb.StateRequest(), timeout=10)
        return reply.space.state, [str(trouble.code) for trouble in space_troubles({"n1": reply})]

    assert await says() == ("ok", [])
    free.nbytes = 3 * RESERVE
    assert await says() == ("low", ["node_without_space"])
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"a")])))
    free.nbytes = RESERVE - 1
    server.server.background._check()
    assert await says() == ("full", ["disk_full"])
    batches = writer.flush(rec.page_delta(1, 0, [(0, b"b")]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.send(batches)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.segment(writer).scl == writer.ends[-2]
    free.nbytes = 1 << 40
    server.server.background._check()
    await server.send(batches)
    assert await says() == ("ok", [])


async def test_nothing_is_merged_for_which_there_is_no_room(start) -> None:
    free = SimpleNamespace(nbytes=0)
    server = await start(server={"free_bytes": lambda _: free.nbytes})
    writer = await Writer().open(server)
    background, segment = server.server.background, server.segment(writer)
    await server.send(writer.flush(rec.page_full(1, 0, b"page")))
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    compacted = []
    segment.store.compact_pages = lambda **_: compacted.append(1) or asyncio.sleep(0)
    await background._compact(segment, thorough=True)
    assert not compacted
    free.nbytes = 1 << 40
    await background._compact(segment, thorough=True)
    assert compacted
