"""A kill at any stage of a promotion in place loses nothing, on six real storage nodes with real engines."""

import asyncio
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from aurora_ray.compute.reader import Reader
from aurora_ray.compute.role import Role
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.postgres import server as server_module
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.mount.mount import MountedVolume
from tests.compute.test_promotion import (  # noqa: F401  (fixtures)
    MakeConfig,
    Opened,
    _account,
    cluster,
    execute,
    make_config,
    opened,
    shared_dir,
)
from tests.compute.test_promotion_in_place import (  # noqa: F401  (fixtures)
    _patient,
    as_writer,
    has_all,
    killed_under_load,
    pair,
)
from tests.compute.test_promotion_in_place import pytestmark as marks
from tests.support.timing import scaled

pytestmark = [*marks, pytest.mark.chaos]

STAGES = (
    "sealed",
    "drained",
    "asked",
    "exchanged",
    "told the volume",
    "just told the engine",
    "promoting",
    "promoted",
)


class Cut:
    """Somewhere on the way everything stops: `reached`, and what was to come never does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        self._monkeypatch = monkeypatch

    async def _stop(self) -> None:
        self.reached.set()
        await asyncio.Event().wait()

    def after(self, of: type, name: str, then: Callable[[Any], Awaitable[object]] | None = None) -> None:
        """`then`, with what the method is of, comes before the stop."""
        method = getattr(of, name)

        async def cut(this: Any, *arguments: Any, **named: Any) -> object:
            result = await method(this, *arguments, **named)
            if not self.reached.is_set():  # else it is whoever opens afterwards
                if then is not None:
                    await then(this)
                await self._stop()
            return result

        self._monkeypatch.setattr(of, name, cut)

    def while_promoted(self, looks: int) -> None:
        """After so many looks at the control file since the engine was told."""
        seen = 0

        def is_there(_: bytes) -> bool:
            nonlocal seen
            seen += 1
            if seen > looks:
                self.reached.set()
            return False

        self._monkeypatch.setattr(server_module, "in_production", is_there)


def _cut(cut: Cut, stage: str) -> None:
    match stage:
        case "sealed":
            cut.after(Writer, "_seal")
        case "drained":
            cut.after(Reader, "_drain")
        case "asked":
            cut.after(PostgresEngine, "succession")
        case "exchanged":
            cut.after(MountedVolume, "exchange")
        case "told the volume":
            cut.after(MountedVolume, "exchange", lambda mounted: mounted.flush(timeout_s=20))
        case "just told the engine":
            cut.while_promoted(1)
        case "promoting":
            cut.while_promoted(12)
        case "promoted":
            cut.after(PostgresEngine, "promote")


@pytest.mark.parametrize("how", [*itertools.product(STAGES, ("engine", "incarnation"))], ids=" of the ".join)
async def test_a_kill_at_any_stage_loses_nothing(
    pair: tuple[Writer, Reader],  # noqa: F811
    make_config: MakeConfig,  # noqa: F811
    opened: Opened,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    how: tuple[str, str],
) -> None:
    (writer, reader), (stage, dies) = pair, how
    acknowledged: list[int] = []
    await execute(reader.config, "checkpoint")
    await killed_under_load(writer, acknowledged, 0, 1.0)
    _cut(cut := Cut(monkeypatch), stage)
    promoting = asyncio.create_task(reader.promote(as_writer(reader)))
    async with asyncio.timeout(scaled(30)):
        await cut.reached.wait()
    mounted = reader._mounted
    assert mounted is not None
    if dies == "incarnation":
        mounted._driver._redo.stop()  # what it has not sent by now it never sends
    os.kill(reader.status().pid, signal.SIGKILL)
    again = Writer(replace(make_config(Role.WRITER), initialise=False))
    await opened(again)
    await has_all(again.config, acknowledged)
    promoting.cancel()
    await asyncio.gather(promoting, return_exceptions=True)
    await execute(again.config, "insert into t values (-1, 'first')")
    assert not (await reader.wait_ended()).asked
