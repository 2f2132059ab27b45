"""The thin shell of `health` around an engine: looks at it now and then, and says when it is hung."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from aurora_ray.compute.health import Finding, Health, HealthRules, Look, Verdict
from aurora_ray.compute.progress import STOPPED, progress_of, state_of
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from aurora_ray.engine.base import Engine
    from aurora_ray.volume.client import Volume

_log = logging.getLogger(__name__)
CALM_EVERY_S = 1.0  # while all is well, a session is opened this often ...
STATE_EVERY_S = 0.1  # ... and between two of them only the process's state is read


class EngineWatch:
    """`wait_hung` returns when the engine is hung. Belongs to the writer's event loop."""

    def __init__(self, engine: Engine, volume: Volume, rules: HealthRules, name: str) -> None:
        self.good_at_ns = time.time_ns()  # Unix time of the last answer, or when it was last not stopped
        self._engine = engine
        self._volume = volume
        self._rules = rules
        self._name = name
        self._vdl = volume.vdl

    async def wait_hung(self) -> Finding:
        """Looks until the engine is hung; what was found. The end of the engine is somebody else's to see."""
        loop, rules = asyncio.get_running_loop(), self._rules
        health = Health(rules, loop.time())
        calm, due_s, answered_ns = True, loop.time(), self.good_at_ns
        while True:
            due_s = max(loop.time(), due_s + (CALM_EVERY_S if calm else rules.look_every_s))
            running_ns = await self._pause(due_s) if calm else 0
            self.good_at_ns = max(self.good_at_ns, running_ns)
            late_s = max(0.0, loop.time() - due_s)
            asked_s, asked_ns = loop.time(), time.time_ns()
            answered = await self._ask(rules.answer_within_s)
            late_s += max(0.0, loop.time() - asked_s - rules.answer_within_s)
            look = self._look(loop.time(), answered=answered, late_s=late_s)
            finding = health.look(look)
            if answered:
                answered_ns = self.good_at_ns = asked_ns
            if finding.verdict is Verdict.HUNG:
                if not look.stopped:
                    self.good_at_ns = answered_ns
                return finding
            if calm and not answered:
                _log.info("%s: %s", self._name, finding.why)
            calm = answered

    async def _pause(self, due_s: float) -> int:
        """Until the next look is due, or the process is stopped; the Unix time (ns) when it last was not."""
        loop = asyncio.get_running_loop()
        running_ns = 0
        while True:
            pid = self._engine.pid
            if pid is not None and state_of(pid) == STOPPED:
                return running_ns
            running_ns = time.time_ns()
            left_s = due_s - loop.time()
            if left_s <= 0:
                return running_ns
            await asyncio.sleep(min(left_s, STATE_EVERY_S))

    async def _ask(self, timeout_s: float) -> bool:
        """Whether it answers; a refusal (too many sessions, say) is an answer."""
        try:
            await self._engine.check(timeout_s=timeout_s)
        except EngineError as error:
            return not isinstance(error.__context__, TimeoutError)
        return True

    def _look(self, now_s: float, *, answered: bool, late_s: float) -> Look:
        pid = self._engine.pid
        progress = progress_of(pid) if pid is not None and not answered else None
        before, self._vdl = self._vdl, self._volume.vdl
        return Look(
            now_s,
            answered,
            vdl=self._volume.vdl,
            cpu_s=progress.cpu_s if progress is not None else None,
            stopped=progress.stopped if progress is not None else False,
            stalled=self._volume.inflight_bytes > 0 and self._volume.vdl == before,
            late_s=late_s,
        )
