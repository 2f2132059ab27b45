"""Whatever ends at whatever point: nothing is lost, nothing is left behind, and what was asked for comes about."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.decide import graveyard, reconcile, replacement, sizing
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model import declared as declared_module
from aurora_ray.control.observe import endpoints, heartbeats
from aurora_ray.control.perform import ports
from aurora_ray.engine.postgres.adapter import PostgresAdapter
from aurora_ray.errors import ConfigurationError
from tests.control.crash import virtual
from tests.control.crash.driver import Driver, Run, Verb, run_verb
from tests.control.crash.verbs import LOOKS, REPAIRS, VERBS
from tests.control.crash.world import Crash, Ends, Store, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aurora_ray.control.model.state import Fleet

pytestmark = [pytest.mark.allowed_logs(r".*"), pytest.mark.timeout(300)]


class Enumeration:
    """Runs verbs, each in a directory of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.worlds: list[World] = []
        self._runs = 0
        enumeration, save, begin = self, bootstrap.save, Driver.begin

        def begins(driver: Driver) -> None:
            enumeration.worlds = [driver.world]
            begin(driver)

        async def opens(volume: object, _: object, *, on_fenced: object, **__: object) -> object:
            return await Store.open(enumeration.worlds[0].hand, volume, on_fenced)  # type: ignore[arg-type]

        def saves(data_dir: Path, fleet: Fleet) -> None:
            if enumeration.worlds[0].hand.dead.is_set():
                return
            before = (data_dir / bootstrap.FILE_NAME).exists() and (data_dir / bootstrap.FILE_NAME).read_text()
            save(data_dir, fleet)
            if before != bootstrap.render(fleet):
                enumeration.worlds[0].passed("file", None, ConfigurationError("the disk is full"))

        monkeypatch.setattr(Driver, "begin", begins)
        monkeypatch.setattr(declared_module, "ControlStore", SimpleNamespace(open=opens))
        monkeypatch.setattr(bootstrap, "save", saves)
        monkeypatch.setattr(asyncio, "to_thread", virtual.inline)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        monkeypatch.setattr(PostgresAdapter, "find", lambda *_: SimpleNamespace(major=18))
        monkeypatch.setattr(PostgresAdapter, "check_parameters", lambda *given: dict.fromkeys(given[-1], "at once"))
        monkeypatch.setattr(ports, "claim_port", self._claim_port)

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


@pytest.mark.parametrize("ends", Ends)
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name.replace(" ", "-"))
def test_every_point_of_every_verb(
    enumeration: Enumeration, verb: Verb, ends: Ends, record_property: Callable[[str, object], None]
) -> None:
    points = len(enumeration.run(verb, Crash(ends)).effects)
    for at in range(1, points + 1):
        enumeration.run(verb, Crash(ends, at))
    record_property("crash points", points)
    sys.stdout.write(f"crash points: {verb.name}: {points} ({ends})\n")


def test_no_verb_and_no_action_is_left_out(enumeration: Enumeration) -> None:
    """A new call of the control plane, or a new action, needs a verb that enumerates it."""
    performed: set[type[Action]] = set()
    counts: Counter[str] = Counter()
    for verb in VERBS:
        run = enumeration.run(verb, Crash(Ends.CONTROL))
        performed |= run.performed
        counts[verb.name] = len(run.effects)
    modules = (reconcile, replacement, heartbeats, endpoints, graveyard, sizing)
    actions = {c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if issubclass(c, Action)}
    assert {a.__name__ for a in actions - {Action}} - {a.__name__ for a in performed} == set()
    calls = {name for name, _ in inspect.getmembers(ControlApi, inspect.isfunction) if not name.startswith("_")}
    assert calls - LOOKS - REPAIRS - {verb.api for verb in VERBS} == set()
    assert all(counts.values()), counts
