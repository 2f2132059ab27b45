"""An instance: one incarnation of a writer after the other, in one process. Plain; the actor around it is thin."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aurora_ray import telemetry
from aurora_ray.compute.config import EngineChoice, Opened, Outcome, WriterConfig, WriterPhase, WriterStatus
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.compute.writer import Writer
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress


class Instance:
    """All methods belong to one event loop."""

    def __init__(self) -> None:
        self._writer: Writer | None = None

    async def get_ready(self, choice: EngineChoice) -> None:
        """Does what opening will need before it is asked for; `open` reports what goes wrong with it."""
        from aurora_ray.compute import writer  # noqa: F401  (its imports take a while)
        from aurora_ray.compute.engines import prepare_engine

        with contextlib.suppress(Exception):
            await prepare_engine(choice)

    async def open(self, config: WriterConfig, trace: Mapping[str, str]) -> Opened:
        """Opens a new incarnation. Raises UsageError while there is one, and what Writer.start raises."""
        from aurora_ray.compute.writer import Writer

        if self._writer is not None and self._writer.status().phase is not WriterPhase.ENDED:
            raise UsageError(f"{config.instance_id} is open already")
        self._writer = Writer(config)
        with telemetry.attached(telemetry.extract_dict(trace)):
            return await self._writer.start()

    async def wait_ended(self) -> Outcome:
        """Returns when the incarnation that is open now has ended."""
        return await self._writer.wait_ended() if self._writer is not None else Outcome(asked=False, reason="not open")

    async def status(self) -> WriterStatus | None:
        """The latest incarnation; None if there was none."""
        return self._writer.status() if self._writer is not None else None

    async def first_write(self, after_ns: int, timeout_s: float) -> tuple[int, int] | None:
        """When the VDL first moved at or after a Unix time (ns), and the VDL; None if it did not in time."""
        return await self._writer.first_write(after_ns, timeout_s) if self._writer is not None else None

    async def configure(self, parameters: Mapping[str, str]) -> None:
        """Other parameters of the cluster. Raises UsageError while it is not open."""
        if self._writer is None:
            raise UsageError("there is no writer to configure")
        await self._writer.configure(parameters)

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        """New addresses of storage nodes."""
        if self._writer is not None:
            await self._writer.update_nodes(nodes)

    async def add_group(self, placement: GroupPlacement) -> None:
        """Another group for the volume."""
        if self._writer is not None:
            await self._writer.add_group(placement)

    async def change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        """See volume.membership.change_members. Raises UsageError while it is not open."""
        if self._writer is None:
            raise UsageError("there is no writer to change the members of a group")
        return await self._writer.change_members(placement, filled)

    async def stop(self, *, fast: bool) -> Outcome | None:
        """Ends the incarnation, in order if `fast`, else at once."""
        if self._writer is None:
            return None
        return await self._writer.stop(StopMode.FAST if fast else StopMode.KILL)
