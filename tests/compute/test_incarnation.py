"""What all kinds of incarnation have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from aurora_ray.compute.config import EngineChoice, IncarnationPhase, InstanceConfig, InstanceStatus, Opened
from aurora_ray.compute.incarnation import End, Opening, both
from aurora_ray.errors import EngineError
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec

if TYPE_CHECKING:
    from pathlib import Path

SPEC = VolumeSpec(uuid4(), 8192, 1 << 20, (GroupPlacement(0, tuple(f"n{number}" for number in range(6))),))


class Watched(Opening):
    """Nothing but what is watched; it fails with `error`."""

    kind = "watched"
    error: Exception

    async def _open_mount(self) -> None:
        self.closed = False

    async def _start_engine(self) -> None:
        pass

    def _opened(self) -> Opened:
        return Opened(0, 0, 0, 0, {})

    def _ends(self) -> list[End]:
        async def fails() -> None:
            raise self.error

        return [End("something", fails(), lambda _: ("it ended", 0))]

    async def _close_below(self) -> None:
        self.closed = True

    def status(self) -> InstanceStatus:
        return InstanceStatus(self._phase)


@pytest.mark.allowed_logs(r"demo-1 ends: ", r"what watches it failed")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineError("it is lost."), "it is lost"),
        (ZeroDivisionError("nobody knows"), "what watches it failed: nobody knows"),
    ],
)
async def test_whatever_goes_wrong_with_what_is_watched_ends_it(tmp_path: Path, error: Exception, reason: str) -> None:
    config = InstanceConfig("demo", "demo-1", "a", SPEC, (), EngineChoice("postgres", "", tmp_path), 0, "secret")
    watched = Watched(config)
    watched.error = error
    await watched.start()
    outcome = await watched.wait_ended()
    assert (outcome.reason, outcome.asked, outcome.retryable) == (reason, False, True)
    assert watched.closed
    assert watched.status().phase is IncarnationPhase.ENDED


async def test_both_are_done_at_the_same_time_and_the_error_of_one_ends_the_other() -> None:
    met = asyncio.Barrier(2)

    async def meets(answer: str) -> str:
        async with asyncio.timeout(30):
            await met.wait()
        return answer

    assert await both(meets("one"), meets("other")) == ("one", "other")
    ended = asyncio.Event()

    async def goes_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fails() -> None:
        raise EngineError("it is lost")

    with pytest.raises(EngineError, match="it is lost"):
        await both(goes_on(), fails())
    assert ended.is_set()
