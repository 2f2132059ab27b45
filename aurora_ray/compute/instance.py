"""An instance: one incarnation after the other, in one process. Plain; the actor around it is thin."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from aurora_ray import telemetry
from aurora_ray.compute.config import EngineChoice, Opened, Outcome, WriterConfig, WriterPhase, WriterStatus
from aurora_ray.compute.kinds import incarnation_of
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.kinds import Incarnation

T = TypeVar("T")


class Instance:
    """All methods belong to one event loop."""

    def __init__(self) -> None:
        self._open: Incarnation | None = None

    async def get_ready(self, choice: EngineChoice) -> None:
        """Does what opening will need before it is asked for; `open` reports what goes wrong with it."""
        from aurora_ray.compute import writer  # noqa: F401  (its imports take a while)
        from aurora_ray.compute.engines import prepare_engine

        with contextlib.suppress(Exception):
            await prepare_engine(choice)

    async def open(self, config: WriterConfig, trace: Mapping[str, str]) -> Opened:
        """Opens a new incarnation. Raises UsageError while there is one, and what Incarnation.start raises."""
        if self._open is not None and self._open.status().phase is not WriterPhase.ENDED:
            raise UsageError(f"{config.instance_id} is open already")
        self._open = incarnation_of(config)
        with telemetry.attached(telemetry.extract_dict(trace)):
            return await self._open.start()

    async def wait_ended(self) -> Outcome:
        """Returns when the incarnation that is open now has ended."""
        return await self._open.wait_ended() if self._open is not None else Outcome(asked=False, reason="not open")

    async def status(self) -> WriterStatus | None:
        """The latest incarnation; None if there was none."""
        return self._open.status() if self._open is not None else None

    async def do(self, command: Command[T]) -> T | None:
        """Has the open incarnation carry out a command; see Command for what happens when there is none."""
        if self._open is None:
            if command.needless:
                return None
            raise UsageError(f"nothing is open that could do {type(command).__name__}")
        return await self._open.do(command)

    async def stop(self, *, fast: bool) -> Outcome | None:
        """Ends the incarnation, in order if `fast`, else at once."""
        if self._open is None:
            return None
        return await self._open.stop(StopMode.FAST if fast else StopMode.KILL)
