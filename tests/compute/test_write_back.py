"""Whoever waits for a checkpoint of a writer that has gone on in place does not wait for its rests, too."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aurora_ray.compute import writer as writer_module
from aurora_ray.compute.config import IncarnationPhase
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import EngineError


class Parts:
    """A mount and an engine that say what is asked of them."""

    holds_commits = False
    pid = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def hurry(self) -> None:
        self.asked.append("hurry")

    async def write_back(self, timeout_s: float) -> None:
        assert timeout_s > 0
        self.asked.append("checkpoint")

    async def stop(self, mode: StopMode, timeout_s: float) -> None:
        assert timeout_s > 0
        self.asked.append(f"stop {mode.name}")
        raise EngineError("it is none")

    async def note_good_start(self) -> None:
        self.asked.append("noted")

    async def complete_databases(self) -> None:
        pass

    async def close(self, *, later: bool) -> None:
        assert not later
        self.asked.append("closed")


@pytest.fixture
async def writer() -> tuple[Writer, Parts]:
    config = {"capacity": None, "memory_bytes": 1 << 30, "parameters": {}, "instance_id": "demo-1", "goes_on": True}
    it, parts = Writer(cast("Any", SimpleNamespace(**config, stop_timeout_s=1.0))), Parts()
    it._volume, it._mounted, it._engine = cast("Any", SimpleNamespace(close=lambda: asyncio.sleep(0))), parts, parts  # type: ignore[assignment]
    it._phase = IncarnationPhase.AVAILABLE
    return it, parts


async def test_a_write_back_does_not_wait_for_rests(writer: tuple[Writer, Parts]) -> None:
    it, parts = writer
    await it.write_back(timeout_s=10.0)
    assert parts.asked == ["hurry", "checkpoint"]


async def test_nor_does_an_orderly_end(writer: tuple[Writer, Parts]) -> None:
    it, parts = writer
    await it.stop()
    assert parts.asked == ["hurry", "stop FAST", "closed"]


async def test_the_checkpoint_that_readers_wait_for_comes_after_a_while_and_hurries_nobody(
    writer: tuple[Writer, Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    it, parts = writer
    monkeypatch.setattr(writer_module, "WRITE_BACK_AFTER_S", 0.2)
    noting = asyncio.create_task(it._note_good_start(parts))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)  # not synchronisation: it is not due yet
    assert parts.asked == ["noted"]
    await asyncio.wait_for(noting, 10)
    assert parts.asked == ["noted", "checkpoint"]
