"""Whatever ends at whatever point: nothing is lost, nothing is left behind, and what was asked for comes about."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.backup.manifest import Subject
from aurora_ray.control.api import backups as backups_api
from aurora_ray.control.api import repair_file, repair_state
from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.decide import (
    backups,
    forks,
    graveyard,
    promoting,
    reconcile,
    regional,
    replacement,
    scaling,
    serverless,
    sizing,
)
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model import bootstrap, capacity
from aurora_ray.control.model import declared as declared_module
from aurora_ray.control.model.backups import RestorePlan
from aurora_ray.control.observe import endpoints, heartbeats
from aurora_ray.control.observe.regions import Regions
from aurora_ray.control.perform import ports
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.engine.postgres.adapter import PostgresAdapter
from aurora_ray.errors import ConfigurationError
from tests.control.crash import virtual
from tests.control.crash.capacity_verbs import CAPACITY_VERBS
from tests.control.crash.driver import Driver, Run, Verb, run_verb
from tests.control.crash.kept_verbs import KEPT
from tests.control.crash.promotions import PROMOTING
from tests.control.crash.regional_verbs import REGIONAL, REGIONAL_LOOKS
from tests.control.crash.verbs import LOOKS
from tests.control.crash.verbs import VERBS as LOCAL
from tests.control.crash.world import Crash, Ends, Store, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _pytest.mark import ParameterSet

    from aurora_ray.control.model.state import Fleet

VERBS = (*LOCAL, *REGIONAL)
POSTGRES = PostgresAdapter()
ALL_VERBS = (*VERBS, *KEPT, *CAPACITY_VERBS, *PROMOTING)
pytestmark = [pytest.mark.allowed_logs(r".*"), pytest.mark.timeout(300)]


class Reader:
    """In the place of VolumeReader: of a volume with the data directory of an engine in it."""

    @classmethod
    async def open(cls, *_: object, **__: object) -> Reader:
        return cls()

    async def read_file_table(self) -> SimpleNamespace:
        entry = SimpleNamespace(extents=[0], file_id=1, size=3)
        return SimpleNamespace(lookup=lambda path: entry if path == POSTGRES.version_file else None)

    async def read_pages(self, _: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(pages=b"18\n")]

    async def close(self) -> None:
        pass


async def looks_up(url: str, *_: object) -> backups_api.Source:
    """In the place of what a bucket says."""
    subject = Subject("gone", "postgres", "18", 8192, 1 << 30, 0, 1, (("work_mem", "8MB"),))
    return backups_api.Source(RestorePlan(url, "fleet/volume", 8), subject, (0,), "volume", 1)


class Enumeration:
    """Runs verbs, each in a directory of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.worlds: list[World] = []
        self._runs = 0
        move = repair_file.move_file
        enumeration, save, begin, ensure = self, bootstrap.save, Driver.begin, PostgresAdapter.ensure_passfile

        def begins(driver: Driver) -> None:
            enumeration.worlds = [driver.world]
            begin(driver)

        async def opens(
            volume: object, _: object, *, on_fenced: object, even_damaged: bool = False, **__: object
        ) -> object:
            hand = enumeration.worlds[0].hand
            return await Store.open(hand, volume, on_fenced, even_damaged=even_damaged)  # type: ignore[arg-type]

        def saves(data_dir: Path, fleet: Fleet) -> None:
            if enumeration.worlds[0].hand.dead.is_set():
                return
            before = (data_dir / bootstrap.FILE_NAME).exists() and (data_dir / bootstrap.FILE_NAME).read_text()
            save(data_dir, fleet)
            if before != bootstrap.render(fleet):
                enumeration.worlds[0].passed("file", None, ConfigurationError("the disk is full"))

        def moves(source: Path, target: Path) -> None:
            move(source, target)
            enumeration.worlds[0].passed("file moved", None, ConfigurationError("the disk is full"))
            if enumeration.worlds[0].hand.dead.is_set():
                raise ConfigurationError("it was killed")

        def ensures(adapter: PostgresAdapter, path: Path) -> str:
            password = ensure(adapter, path)
            if not enumeration.worlds[0].hand.dead.is_set():
                enumeration.worlds[0].passed("pass file", None, ConfigurationError("the disk is full"))
            return password

        monkeypatch.setattr(PostgresAdapter, "ensure_passfile", ensures)
        monkeypatch.setattr(Driver, "begin", begins)
        monkeypatch.setattr(declared_module, "ControlStore", SimpleNamespace(open=opens))
        monkeypatch.setattr(repair_state, "VolumeReader", SimpleNamespace(open=Reader.open))
        monkeypatch.setattr(bootstrap, "save", saves)
        monkeypatch.setattr(repair_file, "move_file", moves)
        monkeypatch.setattr(asyncio, "to_thread", virtual.inline)
        monkeypatch.setattr(capacity, "PAUSE_AFTER_MIN_S", 0.5)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        monkeypatch.setattr(PostgresAdapter, "find", lambda *_: SimpleNamespace(major=18, series="18"))
        monkeypatch.setattr(PostgresAdapter, "check_parameters", lambda *given: dict.fromkeys(given[-1], "at once"))
        monkeypatch.setattr(ports, "claim_port", self._claim_port)
        monkeypatch.setattr(backups_api, "look_up", looks_up)
        monkeypatch.setattr(backups_api, "Bucket", SimpleNamespace(at=lambda _: None))

    def _claim_port(self, _: str, port: int) -> int:
        if port in self.worlds[0].taken_ports:
            raise ConfigurationError("in use")
        return port

    def run(self, verb: Verb, crash: Crash) -> Run:
        self._runs += 1
        directory = self.directory / str(self._runs)
        directory.mkdir()
        try:
            return virtual.run(run_verb(verb, crash, directory))
        except (Exception, asyncio.CancelledError) as error:
            where = f" (after {crash.effects[crash.at - 1]!r})" if 0 < crash.at <= len(crash.effects) else ""
            raise AssertionError(f"{verb.name}, {crash.ends} ends after effect {crash.at}{where}: {error}") from error


@pytest.fixture
def enumeration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enumeration:
    return Enumeration(tmp_path, monkeypatch)


def runs_of(verb: Verb) -> Iterator[ParameterSet]:
    """Who ends in the middle of it."""
    for ends in Ends:
        yield pytest.param(verb, ends, id=f"{verb.name.replace(' ', '-')}-{ends.value}")


@pytest.mark.parametrize(("verb", "ends"), [run for verb in ALL_VERBS for run in runs_of(verb)])
def test_every_point_of_every_verb(
    enumeration: Enumeration, verb: Verb, ends: Ends, record_property: Callable[[str, object], None]
) -> None:
    points = len(enumeration.run(verb, Crash(ends)).effects)
    for at in range(1, points + 1):
        enumeration.run(verb, Crash(ends, at))
    record_property("crash points", points)
    sys.stdout.write(f"crash points: {verb.name}: {points} ({ends})\n")


def test_what_was_done_and_is_wanted_again_at_once_waits(
    enumeration: Enumeration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the effect of an action is not seen at once, the loop would carry it out for as long as no time goes by."""

    async def asks_and_hears_nothing(regions: Regions, cluster: Any, peer: Any, generation: int) -> None:
        request = pb.MakeWayRequest(global_cluster=cluster.membership.name, generation=generation)
        await regions.ask(peer, "MakeWay", request, 1.0)

    monkeypatch.setattr(Regions, "ask_to_make_way", asks_and_hears_nothing)
    (verb,) = [verb for verb in REGIONAL if verb.name == "switchover to here"]
    effects = enumeration.run(verb, Crash(Ends.CONTROL)).effects
    assert 1 <= effects.count("region: make way") <= 5


def test_no_verb_and_no_action_is_left_out(enumeration: Enumeration) -> None:
    """A new call of the control plane, or a new action, needs a verb that enumerates it."""
    performed: set[type[Action]] = set()
    counts: Counter[str] = Counter()
    for verb in ALL_VERBS:
        run = enumeration.run(verb, Crash(Ends.CONTROL))
        performed |= run.performed
        counts[verb.name] = len(run.effects)
    here = (reconcile, replacement, heartbeats, endpoints, graveyard, sizing, scaling, serverless, forks, backups)
    modules = (*here, regional, promoting)
    actions = {c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if issubclass(c, Action)}
    assert {a.__name__ for a in actions - {Action}} - {a.__name__ for a in performed} == set()
    calls = {name for name, _ in inspect.getmembers(ControlApi, inspect.isfunction) if not name.startswith("_")}
    assert calls - LOOKS - REGIONAL_LOOKS - {verb.api for verb in ALL_VERBS} == set()
    assert all(counts.values()), counts
