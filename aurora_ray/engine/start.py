"""A server on its way to being ready, whatever the engine: whether it moves, and why it ended.

A recovery takes as long as it must. What may not be is that nothing moves: not the server's CPU time, not what the
engine's own start looks at, not what the caller knows of (pages that come from the volume).
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, ConfigurationError, EngineError, PortInUseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.engine.process import EngineProcess

PROGRESS_EVERY_S: Final = 0.5
CPU_SHARE_MIN: Final = 0.02  # of one core, below which a server that waits for something is not at work
_FROM_OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM)  # a server that crashes dies of other signals


class StartRefusedError(EngineError):
    """The server ended by itself during its start, in order: something that it was given does not suit it."""


class StartCutError(EngineError):
    """The server was killed during its start, by the machine or by somebody: nothing says that it would be again."""

    retryable = True


class Progress:
    """Looked at now and then, says whether anything moved since; `words` is for people. Times are monotonic."""

    def __init__(self, process: EngineProcess, moved: Callable[[], object], now_s: float) -> None:
        self.words = ""
        self._process = process
        self._moved = moved
        self._begun_s = self._moved_at_s = self._looked_at_s = now_s
        self._before: object = None
        self._cpu_s = 0.0

    def _is_due(self, now_s: float) -> bool:
        return now_s - self._looked_at_s >= PROGRESS_EVERY_S

    def _look(self, now_s: float, state: object, words: str) -> None:
        """`state` of the server, of which any change is a move; `words` say it."""
        since_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        seen, cpu_s = (state, self._moved()), self._process.cpu_s()
        if seen != self._before or cpu_s - self._cpu_s > CPU_SHARE_MIN * since_s:
            self._moved_at_s = now_s
        self._before, self._cpu_s = seen, cpu_s
        self.words = f"recovering for {now_s - self._begun_s:.0f} s ({words})"

    def _still_s(self, now_s: float) -> float:
        """For how long nothing has moved."""
        return now_s - self._moved_at_s


def start_error(process: EngineProcess, title: str, address: tuple[str, int], *, bind_failed: bool) -> AuroraError:
    """Why a server ended during its start. `bind_failed`: its log says that it cannot listen at its address."""
    tail, (host, port) = process.log_tail(), address
    if bind_failed:
        if "Address already in use" in tail:  # taken between our look at the port and the server's own
            return PortInUseError(f"port {port} on {host} is in use: stop what listens there or choose another port")
        return ConfigurationError(f"cannot listen on {host}, port {port}; the server's log ends:\n{tail}")
    code = process.returncode or 0
    kind = StartRefusedError if code > 0 else StartCutError if -code in _FROM_OUTSIDE else EngineError
    return kind(f"{title} ended during its start with code {process.returncode}; its log ends:\n{tail}")
