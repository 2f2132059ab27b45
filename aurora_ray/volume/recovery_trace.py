"""A recovery's phases as spans: asked, sealed, end found and installed, caught up, published."""

from __future__ import annotations

import time
from typing import Final

from aurora_ray import telemetry
from aurora_ray.volume.recovery import Phase

_NAMES: Final = {
    Phase.ASK: "volume.ask",
    Phase.SEAL: "volume.seal",
    Phase.INSTALL: "volume.install",  # the durable end is found when it begins
    Phase.CATCH_UP: "volume.catch_up",
    Phase.PUBLISH: "volume.publish",
}


class PhaseSpans:
    """One attempt; spans go below the current one."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._since_ns = time.time_ns()

    def reached(self, phase: Phase) -> None:
        """To be told after every answer: a phase that was left becomes a span."""
        if phase is not self._phase:
            now_ns = time.time_ns()
            telemetry.record_span(_NAMES[self._phase], self._since_ns, now_ns)
            self._phase, self._since_ns = phase, now_ns
