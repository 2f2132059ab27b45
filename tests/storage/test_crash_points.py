"""The power goes after each effect of a storage node on its disk, one by one; what is left opens, and keeps every word.

Each sequence runs once, with a picture of the directory after every effect (`power_cut.py`). Each picture is then
opened by a node of its own: it opens, nothing acknowledged is missing, no promise is forgotten, what never happened is
not there, content is right at every LSN that is shown, and the node goes on from there.
"""

from __future__ import annotations

import gc
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from rocksdict import Options, Rdict

from aurora_ray.log import record as rec
from aurora_ray.log.segment_rules import Membership, Truncation, adopt
from aurora_ray.log.wire import join_append
from aurora_ray.storage.disk.damage import Damage
from aurora_ray.storage.disk.datadir import DataDir
from aurora_ray.storage.disk.keys import LOG_FAMILIES, LSN_MAX, MARK_KEY, PAGE_FAMILIES
from aurora_ray.storage.heal import gossip, rebuild
from aurora_ray.storage.node import epochs
from aurora_ray.storage.node.fork import ForkOrder, fork
from aurora_ray.storage.node.node import Node
from aurora_ray.storage.pages.coalesce import coalesce
from aurora_ray.storage.pages.garbage import collect
from aurora_ray.storage.pages.reading import read_file_table, read_pages
from aurora_ray.storage.pages.sweeping import sweep
from aurora_ray.storage.server.append import Appender
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.conftest import CRASH_POINTS
from tests.storage.harness import OWNER, PAGE_SIZE, ServerHandle, Writer, config, introduce
from tests.storage.power_cut import Camera, Picture
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE, PAGES = 7, 6

pytestmark = pytest.mark.allowed_logs(r"damaged here", r"page versions get a database of their own")


class Machine:
    """A node on a directory, called as its server would call it."""

    def __init__(self, path: Path, writer: Writer) -> None:
        self.writer = writer
        settings = config(path.parent, path.name)
        self._held = DataDir(settings.data_dir, settings.node_id)
        self.node = Node(settings, time.time)
        self.node.open()

    def close(self) -> None:
        self.node.close()
        self._held.release()

    @property
    def segment(self) -> Any:
        return self.node.segments[self.writer.volume, 0]

    @property
    def lost(self) -> bool:
        volume = self.node.volumes.get(self.writer.volume)
        return volume is not None and 0 in volume.lost

    def create(self) -> None:
        self.node.create_segments(self.writer.volume, PAGE_SIZE, [0], ["n1"])

    def seal(self, epoch: int) -> None:
        volume = self.node.volume(self.writer.volume)
        reply = epochs.seal(volume, pb.SealRequest(volume=self.writer.volume, epoch=epoch, owner=OWNER))
        assert reply.promised

    def truncate(self, *history: tuple[int, int]) -> None:
        request = pb.TruncateRequest(volume=self.writer.volume, epoch=history[-1][0], owner=OWNER, vdl=history[-1][1])
        for epoch, lsn in history:
            request.truncations.add(epoch=epoch, lsn=lsn)
        epochs.truncate(self.node.volume(self.writer.volume), request)

    def send(self, batches: list[bytes]) -> int:
        return Appender(self.node).store(join_append(batches)).lsn

    async def coalesce(self) -> None:
        async with self.segment.background:
            assert await coalesce(self.segment, 1 << 30, [])

    async def fork(self, child: Writer) -> None:
        tails = {0: child.lsn}
        await fork(
            self.node,
            ForkOrder(
                child.volume, self.writer.volume, child.lsn, self.writer.epoch, tails, ("n1",), self.writer.epoch + 1
            ),
        )

    async def collect(self) -> None:
        async with self.segment.background:
            await collect(self.segment, self.segment.meta.layers[-1].end_lsn)


def flush(writer: Writer, step: int) -> list[bytes]:
    records = [rec.create(FILE, b"file"), rec.extent(FILE, 0, 0)] if not writer.lsn else []
    records.append(rec.size(FILE, PAGES * PAGE_SIZE))
    records += [rec.page_full(FILE, page, b"%d of %d" % (step, page) * 30) for page in range(step % 3, PAGES, 2)]
    records += [rec.page_delta(FILE, 1, [(step * 8, b"delta %d" % step)])]
    if step % 4 == 3:
        records.append(rec.truncate(FILE, 2 * PAGE_SIZE + 100))
    return writer.flush(*records)


# ---- what must hold of every picture


async def check_content(machine: Machine, lsn: int) -> None:
    segment, writer = machine.segment, machine.writer
    found = await read_pages(segment, lsn, [(FILE, 0, PAGES)])
    for page, each in enumerate(found):
        assert each == writer.page_at(lsn, FILE, page), (lsn, page)
    assert (await read_file_table(segment, lsn, [])).pack() == writer.table_at(lsn).pack()


async def check_fork(machine: Machine, child: Writer) -> None:
    """It is whole, or not there and can be made; and goes on without its parent."""
    parent = machine.writer
    if child.volume not in machine.node.volumes:
        await machine.fork(child)
    machine.writer = child
    assert not machine.lost
    segment = machine.segment
    assert (segment.scl, segment.meta.epochs.installed_epoch) == (child.lsn, parent.epoch + 1)
    for lsn in {segment.meta.floor_lsn, child.lsn}:
        await check_content(machine, lsn)
    if segment.meta.unswept:
        async with segment.background:
            await sweep(segment)
    await go_on(machine)
    machine.writer = parent


async def check_picture(picture: Picture, writer: Writer) -> None:
    facts = picture.facts
    machine = Machine(picture.path, writer)
    try:
        if writer.volume not in machine.node.volumes or machine.lost:
            assert not facts.exists or (machine.lost and facts.may_be_lost), "it is gone"
            if not facts.exists:  # what was not yet, or no more: it can be made
                machine.create()
            return
        segment = machine.segment
        epochs_held = segment.meta.epochs
        assert segment.scl >= facts.acked_lsn, "acknowledged log is missing"
        assert epochs_held.promised_epoch >= facts.promised_epoch, "a promise is forgotten"
        assert epochs_held.installed_epoch >= facts.installed_epoch, "a history is forgotten"
        stored = {lsn for lsn, _ in segment.store.log_entries(0, LSN_MAX)}
        assert not stored & facts.annulled_lsns, "what never happened is there"
        assert not machine.node.damage.segments()
        for lsn in {segment.meta.floor_lsn, facts.acked_lsn, segment.scl}:
            if lsn >= segment.meta.floor_lsn:
                await check_content(machine, lsn)
        for child in writer.forks:
            await check_fork(machine, child)
        await go_on(machine)
    finally:
        machine.close()


async def go_on(machine: Machine) -> None:
    """The next writer opens the segment, and it takes in, coalesces and collects as ever."""
    segment, writer = machine.segment, machine.writer
    end, epoch = segment.scl, segment.meta.epochs.promised_epoch + 1
    kept = [record for record in writer.records if record.lsn <= end]
    successor = Writer(epoch)
    successor.volume, successor.lsn, successor.vdl = writer.volume, end, end
    successor.prev, successor.records, successor.time_us = {0: end}, kept, writer.time_us
    follower = machine.writer
    machine.writer = successor
    machine.seal(epoch)
    history = [(cut.epoch, cut.lsn) for cut in segment.meta.epochs.truncations if cut.lsn < end]
    machine.truncate(*history, (epoch, end))
    machine.send(flush(successor, 5))
    machine.segment.learn_vdl(successor.lsn)
    await machine.coalesce()
    await machine.collect()
    await check_content(machine, successor.lsn)
    machine.writer = follower


# ---- the sequences


class Stage:
    """A node that is filmed, its writer, and what it has told."""

    def __init__(self, path: Path, monkeypatch: Any) -> None:
        self.writer = Writer()
        self.path = path / "n1"
        self.camera = Camera(self.path, path / "album")
        self.machine = Machine(self.path, self.writer)
        self.step = 0
        self._monkeypatch = monkeypatch

    @property
    def facts(self) -> Any:
        return self.camera.facts

    def filmed(self) -> Any:
        return self.camera.running(self._monkeypatch, self.machine.node)

    def restart(self) -> None:
        self.machine.close()
        self.machine = Machine(self.path, self.writer)

    def begin(self) -> None:
        self.machine.create()
        self.facts.exists = True
        self.seal(1)
        self.truncate((1, 0))

    def seal(self, epoch: int) -> None:
        self.machine.seal(epoch)
        self.facts.promised_epoch = epoch

    def truncate(self, *history: tuple[int, int]) -> None:
        self.machine.truncate(*history)
        self.facts.installed_epoch = history[-1][0]

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            batches = flush(self.writer, self.step)
            self.step += 1
            self.facts.acked_lsn = self.machine.send(batches)
        self.machine.segment.learn_vdl(self.writer.lsn)

    def begun(self) -> Stage:
        """With a little in it."""
        self.begin()
        self.append(3)
        return self


async def a_segment_is_made(stage: Stage) -> None:
    with stage.filmed():
        stage.begin()


async def redo_comes_in(stage: Stage) -> None:
    stage.begin()
    with stage.filmed():
        stage.append(3)


async def a_recovery_annuls_a_tail(stage: Stage) -> None:
    stage.begun()
    end = stage.facts.acked_lsn
    kept = list(stage.writer.records)
    stage.machine.send(flush(stage.writer, 5))
    tail = stage.writer.lsn
    with stage.filmed():
        stage.seal(2)
        stage.facts.acked_lsn = end
        # From here on either history may be in force.
        stage.machine.truncate((1, 0), (2, end))
        stage.facts.installed_epoch = 2
        stage.facts.annulled_lsns = {tail}
        stage.seal(3)
    assert [grave.kind for grave in stage.machine.node.graveyard.graves] == ["tail"]
    assert len(stage.writer.records) > len(kept)


async def gossip_fills_a_gap(stage: Stage) -> None:
    stage.begun()
    missing = [flush(stage.writer, 5), flush(stage.writer, 6)]
    with stage.filmed():
        held = stage.machine.segment.meta.epochs
        adopted = adopt(held, 1, [Truncation(1, 0)], Membership(1, ("n1", "n2")))
        assert adopted is not None
        stage.machine.segment.take_over(adopted, 0)
        assert gossip.store_fetched(stage.machine.segment, [batch for each in missing for batch in each], 1) == 2
        stage.facts.acked_lsn = stage.writer.lsn


async def layers_are_coalesced_and_collected(stage: Stage) -> None:
    stage.begun()
    with stage.filmed():
        for _ in range(2):
            await stage.machine.coalesce()
            stage.append(2)
        await stage.machine.collect()
        await stage.machine.coalesce()


async def a_volume_is_dropped_and_brought_back(stage: Stage) -> None:
    stage.begun()
    volume = stage.writer.volume
    with stage.filmed():
        stage.facts.exists = False
        stage.machine.node.drop_volume(volume, "by its user")
        stage.machine.node.restore_volume(volume, "")
        stage.facts.exists = True
        stage.append()


async def a_volume_is_forked(stage: Stage) -> None:
    """At its end, and at an LSN before its last layer's end."""
    stage.begun()
    await stage.machine.coalesce()
    stage.append(3)
    await stage.machine.coalesce()
    stage.append(2)
    for end in (stage.writer.ends[-1], stage.writer.ends[4]):
        child = stage.writer.fork(end)
        stage.writer.forks.append(child)
        with stage.filmed():
            await stage.machine.fork(child)
    assert stage.machine.node.segments[child.volume, 0].meta.unswept


async def a_fork_is_swept(stage: Stage) -> None:
    stage.begun()
    stage.append(4)
    await stage.machine.coalesce()
    child = stage.writer.fork(stage.writer.ends[2])
    await stage.machine.fork(child)
    stage.writer.forks = [child]
    segment = stage.machine.node.segments[child.volume, 0]
    with stage.filmed():
        async with segment.background:
            assert await sweep(segment)


async def a_group_is_dropped(stage: Stage) -> None:
    stage.begun()
    with stage.filmed():
        stage.facts.exists = False
        stage.machine.node.volumes[stage.writer.volume].drop(0, "moved elsewhere")


async def a_segment_is_lost(stage: Stage) -> None:
    stage.begun()
    with stage.filmed():
        stage.facts.may_be_lost = True
        stage.machine.node.lose(stage.machine.segment, "by a test")


async def the_graveyard_is_emptied(stage: Stage) -> None:
    stage.begun()
    stage.facts.exists = False
    name = stage.machine.node.drop_volume(stage.writer.volume, "by its user")
    with stage.filmed():
        await stage.machine.node.graveyard.purge([name])


SEQUENCES: dict[Any, int] = {  # and how many points there are at least
    a_segment_is_made: 10,
    redo_comes_in: 9,
    a_recovery_annuls_a_tail: 8,
    gossip_fills_a_gap: 5,
    layers_are_coalesced_and_collected: 25,
    a_volume_is_dropped_and_brought_back: 9,
    a_volume_is_forked: 12,
    a_fork_is_swept: 4,
    a_group_is_dropped: 5,
    a_segment_is_lost: 2,
    the_graveyard_is_emptied: 3,
}


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.__name__)
async def test_the_power_may_go_after_every_effect_of(
    sequence: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    await sequence(stage)
    stage.machine.close()
    await check_all(sequence.__name__, stage.camera.pictures, stage.writer, SEQUENCES[sequence])


async def check_all(name: str, pictures: list[Picture], writer: Writer, at_least: int) -> None:
    for number, picture in enumerate(pictures):
        try:
            await check_picture(picture, writer)
        except Exception as error:
            raise AssertionError(f"{name}: after effect {number}, {picture.effect}: {error!r}") from error
    CRASH_POINTS[name] = len(pictures)
    assert len(pictures) >= at_least, [picture.effect for picture in pictures]


# ---- with peers


class FilmedServer:
    """A server among others of which only its own directory is filmed."""

    def __init__(self, handle: ServerHandle, path: Path) -> None:
        self.handle = handle
        self.camera = Camera(handle.config.data_dir, path / "album")


async def four_nodes(start: Callable[..., Any], path: Path) -> tuple[FilmedServer, list[ServerHandle], Writer]:
    """The patient first; all have the same, in layers, and know each other."""
    servers = [await start(f"n{number}") for number in range(1, 5)]
    writer = await Writer().open(*servers)
    for step in range(6):
        batches = flush(writer, step)
        for server in servers:
            await server.send([*batches, writer.heartbeat()])
            if step == 3:
                await server.coalesce(writer)
                await server.collect(writer)
    await introduce(*servers)
    filmed = FilmedServer(servers[0], path)
    facts = filmed.camera.facts
    facts.exists, facts.acked_lsn, facts.promised_epoch, facts.installed_epoch = True, writer.lsn, 1, 1
    return filmed, servers[1:], writer


async def replaced(filmed: FilmedServer, writer: Writer) -> None:
    """A segment that is here, by a copy."""
    server = filmed.handle.server
    assert await rebuild.rebuild(server.node, server.peers, server.node.volumes[writer.volume], 0, damaged=True)


async def copied_anew(filmed: FilmedServer, writer: Writer) -> None:
    """A segment that was lost."""
    server = filmed.handle.server
    filmed.camera.facts.may_be_lost = True
    server.node.lose(filmed.handle.segment(writer), "by a test")
    await filmed.handle.copied()
    await poll_until(lambda: not server.node.volumes[writer.volume].lost, what="it is found")
    await poll_until(lambda: not server.node.damage.segments(), what="it is mended")


async def mended(filmed: FilmedServer, writer: Writer) -> None:
    """A batch, a page and a table, by what peers have."""
    server, segment = filmed.handle.server, filmed.handle.segment(writer)
    key = (writer.volume, 0)
    for item in (
        Damage("log", writer.lsn),
        Damage("page", FILE, 1),
        Damage("table", segment.meta.coalesced_lsn),
    ):
        assert await server.repairer._mend(key, item), item


WITH_PEERS = {replaced: 20, copied_anew: 20, mended: 4}


@pytest.mark.parametrize("sequence", WITH_PEERS, ids=lambda sequence: sequence.__name__)
async def test_the_power_may_go_while_peers_help(
    sequence: Callable[..., Any], start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filmed, _, writer = await four_nodes(start, tmp_path)
    with filmed.camera.running(monkeypatch, filmed.handle.server.node):
        await sequence(filmed, writer)
    await check_all(sequence.__name__, filmed.camera.pictures, writer, WITH_PEERS[sequence])


async def test_the_power_may_go_while_a_segment_is_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the one database of before to two: see `storage/disk/upgrade.py`."""
    stage = Stage(tmp_path, monkeypatch).begun()
    await stage.machine.coalesce()
    stage.append(2)
    stage.machine.close()
    into_one_database(stage.path / "volumes" / str(uuid.UUID(bytes=stage.writer.volume)) / "0")
    with stage.filmed():
        stage.machine = Machine(stage.path, stage.writer)
    await check_content(stage.machine, stage.facts.acked_lsn)
    stage.machine.close()
    await check_all("an_upgrade", stage.camera.pictures, stage.writer, 5)


def into_one_database(path: Path) -> None:
    """Stores a segment as it was stored before page versions had a database of their own."""
    options = Options(raw_mode=True)
    options.create_missing_column_families(True)
    names = (*LOG_FAMILIES, "pages")
    pages = Rdict(str(path / "pages"), column_families={each: Options(raw_mode=True) for each in PAGE_FAMILIES})
    log = Rdict(str(path), options, column_families={each: Options(raw_mode=True) for each in names})
    moved, kept = pages.get_column_family("pages"), log.get_column_family("pages")
    for key, value in moved.items():
        kept[key] = value
    mark = pages.get_column_family("page-marks")[MARK_KEY]
    log.get_column_family("marks")[MARK_KEY] = mark
    for database, families in ((pages, PAGE_FAMILIES), (log, names)):
        for each in families:
            family = database.get_column_family(each)
            family.flush(True)
            family.close()
        database.close()
    del moved, kept, family, database
    gc.collect()
    shutil.rmtree(path / "pages")
