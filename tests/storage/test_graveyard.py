"""What a node is told to drop is kept, listed, brought back, and removed in time; nothing else is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.errors import StorageError, UnknownVolumeError, UsageError
from aurora_ray.log import record as rec
from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.graveyard import GRAVES_MAX, Graveyard
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import Writer, config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY_S = 24 * 3600.0


async def drop(server: Any, writer: Writer, *groups: int) -> str:
    request = pb.DropVolumeRequest(volume=writer.volume, groups=groups, reason="a test says so")
    return (await server.stub.DropVolume(request, timeout=10)).grave


async def graves(server: Any, volume: bytes = b"") -> list[pb.Grave]:
    return list((await server.stub.ListGraveyard(pb.ListGraveyardRequest(volume=volume), timeout=10)).graves)


async def restore(server: Any, writer: Writer, grave: str = "") -> Any:
    return await server.stub.RestoreVolume(pb.RestoreVolumeRequest(volume=writer.volume, grave=grave), timeout=10)


async def written(server: Any, text: bytes = b"kept", groups: tuple[int, ...] = (0,)) -> Writer:
    writer = await Writer().open(server, groups=groups)
    await server.send(writer.flush(rec.page_full(1, 0, text)))
    return writer


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_dropped_volume_comes_back_as_it_was(start: Callable[..., Any], restarted: bool) -> None:
    server = await start()
    writer = await written(server)
    await server.seal(writer, 7)
    before = await server.state(writer)
    name = await drop(server, writer)
    if restarted:
        await server.restart()
    [grave] = await graves(server, writer.volume)
    assert (grave.name, grave.kind, list(grave.groups)) == (name, pb.GRAVE_VOLUME, [0])
    assert grave.reason == "a test says so"
    assert grave.bytes > 0
    assert grave.until_ms - grave.since_ms == DAY_S * 1000
    with pytest.raises(UnknownVolumeError):
        await server.state(writer)
    assert (await restore(server, writer)).grave == name
    assert await server.state(writer) == before  # its promises too
    assert (await server.pages(writer, writer.lsn, 1, count=1))[0].rstrip(b"\0") == b"kept"
    assert await graves(server) == []
    await server.restart()
    assert await server.state(writer) == before


async def test_only_what_lies_there_can_be_restored(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await written(server)
    with pytest.raises(UsageError, match="nothing to restore"):
        await restore(server, writer)
    await drop(server, writer)
    with pytest.raises(UnknownVolumeError, match="no grave another"):
        await restore(server, writer, "another")
    assert len(await graves(server)) == 1


async def test_the_newest_of_two_graves_comes_back_unless_one_is_named(start: Callable[..., Any]) -> None:
    now_s = 1e9
    server = await start(server={"clock": lambda: now_s})
    writer = await written(server, b"first")
    first = await drop(server, writer)
    now_s += 10
    await writer.open(server)  # the same volume, made anew
    writer.prev, writer.lsn = {}, 0
    await server.send(writer.flush(rec.page_full(1, 0, b"second")))
    second = await drop(server, writer)
    assert (await restore(server, writer)).grave == second
    assert (await server.pages(writer, writer.lsn, 1, count=1))[0].rstrip(b"\0") == b"second"
    await drop(server, writer)
    assert (await restore(server, writer, first)).grave == first
    assert (await server.pages(writer, writer.lsn, 1, count=1))[0].rstrip(b"\0") == b"first"


async def test_what_was_never_written_to_is_not_kept(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await Writer().open(server, groups=(0, 1))
    assert await drop(server, writer, 1) == ""
    assert await drop(server, writer) == ""
    assert await graves(server) == []
    assert not any((server.config.data_dir / "volumes").iterdir())
    assert not any((server.config.data_dir / "graveyard").iterdir())


async def test_a_dropped_group_is_kept_too(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await Writer().open(server, groups=(0, 1))
    await server.send(writer.flush(rec.page_full(1, 0, b"a"), rec.page_full(1, 1 << 17, b"b")))
    groups = sorted(server.server.node.volumes[writer.volume].segments)
    await drop(server, writer, groups[-1])
    await server.restart()
    assert sorted(server.server.node.volumes[writer.volume].segments) == groups[:-1]
    assert server.server.node.volumes[writer.volume].lost == set()


async def test_a_drop_that_cannot_be_made_leaves_the_volume(start: Callable[..., Any], monkeypatch: Any) -> None:
    server = await start()
    writer = await written(server)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(effects, "write_file", full)
        with pytest.raises(StorageError, match="could not be moved"):
            server.server.node.drop_volume(writer.volume, "")
    assert (await server.pages(writer, writer.lsn, 1, count=1))[0].rstrip(b"\0") == b"kept"
    await server.restart()
    assert await graves(server) == []
    assert (await server.pages(writer, writer.lsn, 1, count=1))[0].rstrip(b"\0") == b"kept"


async def test_a_volume_goes_when_its_time_is_over_and_no_sooner(start: Callable[..., Any]) -> None:
    now_s = 1e9
    server = await start(server={"clock": lambda: now_s})
    await drop(server, await written(server))
    now_s += DAY_S - 1
    await server.server.node.tend_graveyard()
    assert len(await graves(server)) == 1
    now_s += 2
    await server.server.node.tend_graveyard()
    assert await graves(server) == []
    assert not any((server.config.data_dir / "graveyard").iterdir())


async def test_a_person_can_purge_what_is_named(start: Callable[..., Any]) -> None:
    server = await start()
    kept, gone = await drop(server, await written(server)), await drop(server, await written(server))
    for names in ([], [gone, "no such grave"], ["../volumes"]):
        with pytest.raises(UsageError):
            await server.stub.PurgeGraveyard(pb.PurgeGraveyardRequest(graves=names), timeout=10)
    freed = await server.stub.PurgeGraveyard(pb.PurgeGraveyardRequest(graves=[gone]), timeout=10)
    assert freed.bytes > 0
    assert [grave.name for grave in await graves(server)] == [kept]


def graveyard(path: Path, clock: Callable[[], float], **settings: Any) -> Graveyard:
    return Graveyard(config(path, **settings), clock, Counter())


def test_segments_and_tails_stay_as_far_as_space_allows(tmp_path: Path) -> None:
    now_s = 1e9
    yard = graveyard(tmp_path, lambda: now_s, graveyard_bytes=25_000, disk_reserve_bytes=1000)
    names = []
    for _ in range(4):
        now_s += 1
        names.append(yard.bury_tail(b"v" * 16, 0, [bytes(10_000)], "annulled"))
    disk = {"free_bytes": 1 << 40, "disk_bytes": 1 << 40}
    assert yard.due(**disk) == [names[1], names[0]]
    assert yard.due(free_bytes=1 << 40, disk_bytes=300_000) == [names[2], names[1], names[0]]  # a share of the disk
    assert yard.due(free_bytes=1500, disk_bytes=1 << 40) == names[::-1]  # space is wanted
    now_s += 365 * DAY_S
    assert yard.due(**disk) == [names[1], names[0]]  # not for their age
    for _ in range(GRAVES_MAX):
        yard.bury_tail(b"v" * 16, 0, [b"x"], "annulled")
    assert len(yard.graves) - len(yard.due(**disk)) == GRAVES_MAX


def test_a_manifest_that_cannot_be_read_keeps_its_grave_as_long_as_a_volume(tmp_path: Path) -> None:
    path = config(tmp_path).data_dir / "graveyard" / "damaged"
    (path / "content").mkdir(parents=True)
    (path / "manifest.json").write_text("{")
    born_s = path.stat().st_mtime
    for age_s, due in ((DAY_S - 1, []), (DAY_S + 1, ["damaged"])):
        yard = graveyard(tmp_path, lambda age_s=age_s: born_s + age_s)
        yard.open()
        assert [grave.kind for grave in yard.graves] == ["unknown"]
        assert yard.due(1 << 40, 1 << 40) == due


async def test_no_message_makes_a_node_forget_its_peers(start: Callable[..., Any]) -> None:
    server = await start()
    known = {"n2": "127.0.0.1:2", "n3": "127.0.0.1:3"}
    await server.stub.SetPeers(pb.SetPeersRequest(addresses=known), timeout=10)
    for addresses in ({}, {"n2": ""}, {"n2": "nowhere"}, {"": "127.0.0.1:1"}, {"n2": "h:99999"}):
        with pytest.raises(UsageError, match="address"):
            await server.stub.SetPeers(pb.SetPeersRequest(addresses=addresses), timeout=10)
    await server.stub.SetPeers(pb.SetPeersRequest(addresses={"n1": "127.0.0.1:1"}), timeout=10)  # itself
    assert server.server.node.peers == known
    await server.restart()
    assert server.server.node.peers == known
