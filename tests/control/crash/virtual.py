"""An event loop whose time stands still while there is something to do, and jumps to the next timer otherwise."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
START_S = 1000.0
STANDS_FOR = 20_000  # turns of the loop: whoever has that much to do at one moment never comes to an end


class _Selector(selectors.SelectSelector):
    """Never waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = START_S
        self._turns = 0  # since the time went on

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self._turns += 1
        assert self._turns < STANDS_FOR, "something is done over and over, and the time stands still meanwhile"
        if ready:
            return ready
        assert timeout is not None, "everything waits, and for nothing that is going to happen"
        if timeout > 0:
            self._turns = 0
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code whose only outside is time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s + 1e-9  # a timer that was jumped to is due


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end; what is left of it is cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


async def inline(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """In the place of asyncio.to_thread: a thread knows nothing of this time."""
    return function(*arguments, **options)
