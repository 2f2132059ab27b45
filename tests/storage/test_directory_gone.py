"""A node whose data directory was removed: it says so, and no call meets anything unexpected."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from aurora_ray.control.observe.space import space_troubles
from aurora_ray.errors import AuroraError
from aurora_ray.log import record as rec
from aurora_ray.storage.disk.rocks import WriteFailedError
from aurora_ray.storage.server import background
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import OWNER, PAGE_SIZE, ServerHandle, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = pb.DESCRIPTOR.services_by_name["StorageNode"].methods
STREAMS = {method.name for method in METHODS if method.server_streaming}


@pytest.fixture(autouse=True)
def _unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node looks after its directory when the test has it do so."""
    monkeypatch.setattr(background, "_DISK_CHECK_S", 3600.0)


async def written(server: ServerHandle) -> Writer:
    """A volume with a layer, and with log after it."""
    writer = await Writer().open(server)
    for number in range(4):
        await server.send(writer.flush(rec.page_full(1, number, b"page")))
        await server.send([writer.heartbeat()])
        if number == 2:
            await server.coalesce(writer)
    return writer


def sound_requests(writer: Writer, dropped: Writer, grave: str) -> Iterator[tuple[str, Any]]:
    """Of every method, what a node that has its directory would do, those that change much last."""
    lsn = writer.lsn
    volume = {"volume": writer.volume}
    group = volume | {"group": 0}
    yield "AppendPort", pb.AppendPortRequest()
    yield "State", pb.StateRequest()
    yield "State", pb.StateRequest(**volume)
    yield "ListGraveyard", pb.ListGraveyardRequest()
    yield "ReadPages", pb.ReadPagesRequest(**volume, lsn=lsn, ranges=[pb.PageRange(file_id=1, count=3)])
    yield "ReadFileTable", pb.ReadFileTableRequest(**volume, lsn=lsn)
    yield "Subscribe", pb.SubscribeRequest(**group)
    yield "FetchLog", pb.FetchLogRequest(**group, up_to_lsn=lsn)
    yield "CopySegment", pb.CopySegmentRequest(**group, lsn=lsn)
    yield "OutlineSegment", pb.OutlineSegmentRequest(**group)
    yield "Digest", pb.DigestRequest(**group, lsn=lsn)
    yield "SetPeers", pb.SetPeersRequest(addresses={"n2": "127.0.0.1:1"})
    yield "SetReadPoint", pb.SetReadPointRequest(**volume, lsn=lsn, lease_ms=1000, holder="reader")
    [batch] = writer.flush(rec.page_full(1, 0, b"more"))
    yield "Append", batch
    yield "CatchUp", pb.CatchUpRequest(**volume, tails=[pb.GroupTail(group=0, lsn=lsn + 1)], timeout_ms=100)
    yield "Seal", pb.SealRequest(**volume, epoch=2, owner=OWNER)
    epochs = [pb.Truncation(epoch=1), pb.Truncation(epoch=2, lsn=lsn)]
    yield "Truncate", pb.TruncateRequest(**volume, epoch=2, owner=OWNER, vdl=lsn, truncations=epochs)
    yield "RestoreVolume", pb.RestoreVolumeRequest(volume=dropped.volume, grave=grave)
    yield "PurgeGraveyard", pb.PurgeGraveyardRequest(graves=[grave])
    yield "Locate", pb.LocateRequest(**volume, lsn=lsn)
    yield "SetRetention", pb.SetRetentionRequest(**volume, retention=pb.Retention(seconds=1))
    tails = [pb.GroupTail(group=0, lsn=lsn)]
    yield "Fork", pb.ForkRequest(volume=b"f" * 16, parent=writer.volume, lsn=lsn, epoch=1, tails=tails, members=["n1"])
    yield "DropVolume", pb.DropVolumeRequest(**volume, groups=[1])
    yield "DropVolume", pb.DropVolumeRequest(**volume)
    yield "CreateSegments", pb.CreateSegmentsRequest(volume=b"n" * 16, page_size=PAGE_SIZE, groups=[0], members=["n1"])


async def answer(server: ServerHandle, method: str, request: Any) -> str:
    """What the call ended with: "OK", a status or the name of our error."""
    try:
        if method == "Append":
            await server.send([request])
        elif method in STREAMS:
            async with asyncio.timeout(10):
                async for _ in getattr(server.stub, method)(request, timeout=10):
                    break
        else:
            await getattr(server.stub, method)(request, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except AuroraError as error:
        return type(error).__name__
    return "OK"


@pytest.mark.allowed_logs(
    "not in .* any more", "a restart will not know", "could not be moved to the graveyard", "damaged here"
)
async def test_no_call_meets_anything_unexpected(start) -> None:
    server = await start()
    dropped, writer = await written(server), await written(server)
    grave = server.server.node.drop_volume(dropped.volume, "for this test")
    answers: list[tuple[str, str]] = []
    for method, request in sound_requests(writer, dropped, grave):
        shutil.rmtree(server.config.data_dir, ignore_errors=True)
        answers.append((method, await answer(server, method, request)))
    assert {method for method, _ in answers} == {method.name for method in METHODS}
    assert server.server.node.counters["unexpected_errors"] == 0, answers
    refused = {method for method, said in answers if said != "OK"}
    assert {"RestoreVolume", "PurgeGraveyard", "DropVolume"} <= refused
    assert not refused & {"State", "ListGraveyard", "SetPeers", "CreateSegments"}


async def says(server: ServerHandle) -> tuple[str, list[str]]:
    """Of its room, and the troubles that status shows."""
    reply = await server.stub.State(pb.StateRequest(), timeout=10)
    return reply.space.state, [str(trouble.code) for trouble in space_troubles({"n1": reply})]


async def test_a_node_says_that_its_directory_is_gone_and_makes_it_anew(start) -> None:
    server = await start()
    shutil.rmtree(server.config.data_dir)
    assert await says(server) == ("gone", ["directory_gone"])
    server.server.background._check()
    assert await says(server) == ("ok", [])
    assert (server.config.data_dir / "node").read_text() == "n1"


@pytest.mark.allowed_logs("cannot be looked after")
async def test_what_stands_in_the_directorys_place_is_told_once(start, caplog: pytest.LogCaptureFixture) -> None:
    server = await start()
    shutil.rmtree(server.config.data_dir)
    server.config.data_dir.write_bytes(b"a file")
    for _ in range(3):
        server.server.background._check()
    assert sum("cannot be looked after" in record.message for record in caplog.records) == 1
    assert (await says(server))[0] == "gone"


@pytest.mark.allowed_logs("damaged here", "a write failed")
async def test_a_write_that_fails_for_want_of_the_directory_opens_no_empty_segment(start) -> None:
    server = await start()
    writer = await written(server)
    node, segment = server.server.node, server.segment(writer)
    shutil.rmtree(server.config.data_dir)
    node.note_failure(WriteFailedError((writer.volume, 0), OSError("No such file or directory")))
    volume = node.volume(writer.volume)
    assert (volume.lost, volume.segments) == ({0}, {})
    server.server.background._check()
    assert (await says(server))[0] == "ok", "it waits for no segment to be opened again"
    assert segment.closed


@pytest.mark.allowed_logs("damaged here", "not in .* any more")
async def test_graves_that_were_removed_are_not_listed(start) -> None:
    server = await start()
    dropped = await written(server)
    node = server.server.node
    assert node.drop_volume(dropped.volume, "for this test")
    shutil.rmtree(server.config.data_dir)
    server.server.background._check()
    await node.tend_graveyard()
    assert not (await server.stub.ListGraveyard(pb.ListGraveyardRequest(), timeout=10)).graves
