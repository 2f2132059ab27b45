"""An instance: one incarnation after the other, in one process. Plain; the actor around it is thin."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from aurora_ray import telemetry
from aurora_ray.compute import capacity
from aurora_ray.compute.commands import Scale
from aurora_ray.compute.config import EngineChoice, IncarnationPhase, InstanceConfig, InstanceStatus, Opened, Outcome
from aurora_ray.compute.kinds import incarnation_of
from aurora_ray.compute.usage import LOOK_EVERY_S, Usage
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.network import hold_port
from aurora_ray.engine.registry import adapter
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.kinds import Incarnation
    from aurora_ray.compute.reader import Reader

T = TypeVar("T")

LEAVING_S: Final = 5.0


class Instance:
    """All methods belong to one event loop."""

    def __init__(self) -> None:
        self._open: Incarnation | None = None
        self._usage: Usage | None = None
        self._volume_id = ""
        self._place: tuple[str, int] | None = None  # where the engine of the latest incarnation listened
        self._port_held: socket.socket | None = None
        self._leaving: asyncio.Task[None] | None = None  # holds what goes on after an end
        self._promoting: asyncio.Task[Opened] | None = None  # of the incarnation that is open, or was

    async def get_ready(self, choice: EngineChoice) -> None:
        """Does what opening will need before it is asked for; `open` reports what goes wrong with it."""
        from aurora_ray.compute import reader, writer  # noqa: F401  (their imports take a while)
        from aurora_ray.compute.engines import prepare_engine

        with contextlib.suppress(Exception):
            await prepare_engine(choice)

    async def open(self, config: InstanceConfig, trace: Mapping[str, str]) -> Opened:
        """Opens a new incarnation. Raises UsageError while there is one, and what Incarnation.start raises."""
        from aurora_ray.compute.incarnation import Opening  # its imports take a while

        if self._open is not None and self._open.status().phase is not IncarnationPhase.ENDED:
            raise UsageError(f"{config.instance_id} is open already")
        if self._leaving is not None:  # it makes what this one takes: two at a time would take longer
            await asyncio.wait({self._leaving}, timeout=LEAVING_S)
            self._leaving = None
        self._let_go_of_port()
        self._promoting = None
        self._place = (config.host, config.port) if config.port and config.role.traits.addressed else None
        self._open = incarnation_of(config)
        self._volume_id = str(config.volume.volume_id)
        counters = self._open.counters if isinstance(self._open, Opening) else dict
        known = adapter(config.engine.engine)
        self._usage = Usage(known.sessions, counters=counters, busy=known.busy_sessions)
        with telemetry.attached(telemetry.extract_dict(trace)):
            return await self._open.start()

    async def promote(self, config: InstanceConfig, trace: Mapping[str, str]) -> Opened:
        """The reader that is open goes on as the writer, with its sessions. It does so once: whoever asks again, and
        however often, hears what became of that. Raises UsageError if none is open, and what Reader.promote raises."""
        from aurora_ray.compute.reader import Reader  # its imports take a while

        if self._promoting is None:
            reader = self._open
            if not isinstance(reader, Reader):
                raise UsageError(f"{config.instance_id} is no open reader")
            with telemetry.attached(telemetry.extract_dict(trace)):
                self._promoting = asyncio.create_task(
                    self._promote(reader, config), name=f"promote {config.instance_id}"
                )
        return await asyncio.shield(self._promoting)

    async def _promote(self, reader: Reader, config: InstanceConfig) -> Opened:
        self._open, opened = await reader.promote(config)
        reader.succeeded()
        return opened

    async def _end_promotion(self) -> None:
        """Cuts it short, if it goes on: its incarnation ends of that."""
        if self._promoting is not None and not self._promoting.done():
            self._promoting.cancel()
            await asyncio.wait({self._promoting})

    async def wait_ended(self) -> Outcome:
        """Returns when the incarnation that is open now has ended, and no other one goes on with what it had."""
        while (incarnation := self._open) is not None:
            outcome = await incarnation.wait_ended()
            if self._open is incarnation:
                return outcome
        return Outcome(asked=False, reason="not open")

    async def status(self) -> InstanceStatus | None:
        """The latest incarnation, with what its engine uses among its `stats`; None if there was none."""
        if self._open is None or self._usage is None:
            return None
        status = self._open.status()
        if "acu" in status.stats:  # it is decided by what is seen: the next step waits for this answer
            self._usage.every_s = capacity.LOOK_EVERY_S
            seen = await self._usage.fresh(status.pid, capacity.LOOK_WITHIN_S)
        else:
            self._usage.every_s = LOOK_EVERY_S
            seen = self._usage.of(status.pid)
        return replace(status, stats={**status.stats, **seen}, volume_id=self._volume_id)

    async def do(self, command: Command[T], trace: Mapping[str, str] | None = None) -> T | None:
        """Has the open incarnation carry out a command; see Command for what happens when there is none. `trace`: that
        it belongs to."""
        if self._open is None:
            if command.needless:
                return None
            raise UsageError(f"nothing is open that could do {type(command).__name__}")
        with telemetry.attached(telemetry.extract_dict(trace)):
            done = await self._open.do(command)
        if isinstance(command, Scale) and self._usage is not None:
            self._usage.begin_anew()
        return done

    async def stop(self, *, fast: bool, reopens: bool = False) -> Outcome | None:
        """Ends the incarnation, in order if `fast`, else at once. `reopens`: see Opening.stop; until then nobody else
        gets its port, for which whoever wakes a paused cluster would wait longer, as there would be another."""
        if self._open is None:
            return None
        from aurora_ray.compute.incarnation import Opening

        await self._end_promotion()
        outcome = await self._open.stop(StopMode.FAST if fast else StopMode.KILL, reopens=reopens)
        if reopens and isinstance(self._open, Opening):
            self._leaving = asyncio.create_task(
                self._open.leave_tree(), name=f"a tree in waiting for {self._volume_id}"
            )
        if reopens and self._place is not None and self._port_held is None:
            self._port_held = hold_port(*self._place)
        elif not reopens:
            self._let_go_of_port()
        return outcome

    def _let_go_of_port(self) -> None:
        if self._port_held is not None:
            self._port_held.close()
            self._port_held = None
