"""What instances hold of their machines, as the control plane knows it: looked at when it begins, told after changes.

Where there is no more room, that is remembered for a while, so that nobody asks again at every look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aurora_ray.control.model.runtime import Runtime

ASK_AGAIN_S: Final = 10.0


class Pools:
    """Belongs to the control plane's event loop. `clock` is monotonic."""

    def __init__(self, runtime: Runtime, clock: Callable[[], float]) -> None:
        self._runtime = runtime
        self._clock = clock
        self._held: dict[str, float] | None = None
        self._short: dict[str, float] = {}  # until when its machine has no more

    @property
    def held(self) -> Mapping[str, float] | None:
        """ACUs by instance; None: not looked at yet."""
        return self._held

    def short(self) -> dict[str, float]:
        """What those hold whose machine had no more when they were last to get more."""
        now_s = self._clock()
        self._short = {of: until_s for of, until_s in self._short.items() if until_s > now_s}
        return {of: (self._held or {}).get(of, 0.0) for of in self._short}

    async def look(self) -> None:
        """Finds what is there. Raises NoPlaceError."""
        self._held = dict(await self._runtime.held_capacity())

    async def hold(self, instance_id: str, host: str, acu: float, cpus_per_acu: float) -> float:
        """See Runtime.hold_capacity."""
        if self._held is None:
            await self.look()
        known = self._held if self._held is not None else {}
        try:
            got = await self._runtime.hold_capacity(instance_id, host, acu, cpus_per_acu)
        except BaseException:
            self._held = None  # it may have been done all the same
            raise
        known[instance_id] = got
        if not got:
            del known[instance_id]
        self._short.pop(instance_id, None)
        if got < acu:
            self._short[instance_id] = self._clock() + ASK_AGAIN_S
        return got
