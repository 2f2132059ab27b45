"""The thin shell of `health`: looks at something now and then, and says when it is hung."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aurora_ray.compute.health import Finding, Health, HealthRules, Look, Verdict
from aurora_ray.compute.progress import STOPPED, progress_of, state_of
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from aurora_ray.engine.base import Engine
    from aurora_ray.volume.write.volume import Volume

_log = logging.getLogger(__name__)
CALM_EVERY_S = 1.0  # while all is well, it is asked this often ...
STATE_EVERY_S = 0.1  # ... and between two questions only the process's state is read


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched. `ask`: whether it answers within these seconds. `pid`: its main process, if it is on this
    machine. `storage`: the VDL, and whether redo is waiting for storage."""

    name: str
    ask: Callable[[float], Awaitable[bool]]
    pid: Callable[[], int | None]
    storage: Callable[[], Awaitable[tuple[int, bool]]]


class Watch:
    """`wait_hung` returns when it is hung. Belongs to one event loop."""

    def __init__(self, watched: Watched, rules: HealthRules) -> None:
        self.good_at_ns = time.time_ns()  # Unix time of the last answer, or when it was last not stopped
        self._watched = watched
        self._rules = rules

    async def wait_hung(self) -> Finding:
        """Looks until it is hung; what was found. The end of a process is somebody else's to see."""
        loop, rules = asyncio.get_running_loop(), self._rules
        health = Health(rules, loop.time())
        calm, due_s, answered_ns = True, loop.time(), self.good_at_ns
        while True:
            due_s = max(loop.time(), due_s + (CALM_EVERY_S if calm else rules.look_every_s))
            if calm:
                await self._pause(due_s)
            stopped = await self._stopped()
            if stopped is not None:
                return stopped
            late_s = max(0.0, loop.time() - due_s)
            asked_s, asked_ns = loop.time(), time.time_ns()
            answered = await self._watched.ask(rules.answer_within_s)
            late_s += max(0.0, loop.time() - asked_s - rules.answer_within_s)
            look = await self._look(answered=answered, late_s=late_s)
            finding = health.look(look)
            if answered:
                answered_ns = self.good_at_ns = asked_ns
            if finding.verdict is Verdict.HUNG:
                if not look.stopped:
                    self.good_at_ns = answered_ns
                return finding
            if calm and not answered:
                _log.info("%s: %s", self._watched.name, finding.why)
            calm = answered
            if not calm:  # a refusal may come at once
                await asyncio.sleep(max(0.0, due_s + rules.look_every_s - loop.time()))

    async def _pause(self, due_s: float) -> None:
        """Until the next question is due, or the process is stopped."""
        loop = asyncio.get_running_loop()
        while True:
            pid = self._watched.pid()
            if pid is not None:
                if (state := state_of(pid)) == STOPPED:
                    return
                if state is not None:
                    self.good_at_ns = time.time_ns()
            left_s = due_s - loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, STATE_EVERY_S))

    async def _stopped(self) -> Finding | None:
        """While it is stopped by a signal: waits until it goes on, or has been so for long enough. It is not asked."""
        loop, rules = asyncio.get_running_loop(), self._rules
        since_s = seen_s = loop.time()
        while (pid := self._watched.pid()) is not None and state_of(pid) == STOPPED:
            now_s = loop.time()
            if now_s - seen_s > rules.late_s:
                since_s = now_s  # we were held up ourselves: it may have run meanwhile
            seen_s = now_s
            if now_s - since_s >= rules.stopped_after_s:
                _, stalled = await self._watched.storage()
                why = f"it is stopped by a signal, for {now_s - since_s:.1f} s"
                return None if stalled else Finding(Verdict.HUNG, now_s - since_s, why)
            await asyncio.sleep(STATE_EVERY_S)
        return None

    async def _look(self, *, answered: bool, late_s: float) -> Look:
        now_s = asyncio.get_running_loop().time()
        if answered:
            return Look(now_s, answered=True)
        vdl, stalled = await self._watched.storage()
        pid = self._watched.pid()
        progress = progress_of(pid) if pid is not None else None
        return Look(
            now_s,
            answered=False,
            vdl=vdl,
            cpu_s=progress.cpu_s if progress is not None else None,
            stopped=progress.stopped if progress is not None else False,
            stalled=stalled,
            late_s=late_s,
        )


def writer_watch(engine: Engine, volume: Volume, rules: HealthRules, name: str) -> Watch:
    """A writer's look at its engine."""
    before = [volume.vdl]

    async def storage() -> tuple[int, bool]:
        vdl, before[0] = before[0], volume.vdl
        return volume.vdl, volume.redo.inflight_bytes > 0 and volume.vdl == vdl

    return engine_watch(engine, storage, rules, name)


def engine_watch(
    engine: Engine, storage: Callable[[], Awaitable[tuple[int, bool]]], rules: HealthRules, name: str
) -> Watch:
    """An instance's look at its engine, which shall open a session and answer. A refusal is an answer. `storage`: see
    Watched."""

    async def ask(timeout_s: float) -> bool:
        try:
            await engine.check(timeout_s=timeout_s)
        except EngineError as error:
            return not isinstance(error.__context__, TimeoutError)
        return True

    return Watch(Watched(name, ask, lambda: engine.pid, storage), rules)
