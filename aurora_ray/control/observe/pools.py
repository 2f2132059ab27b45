"""What instances hold of their machines, as the control plane knows it: looked at when it begins, told after changes.

Where there is no more room, that is remembered for a while, so that nobody asks again at every look. While anything
is held it is looked at anew now and then: what is lost without anybody's word is missed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.control.model.runtime import NoPlaceError, Short

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aurora_ray.control.model.runtime import Room, Runtime

ASK_AGAIN_S: Final = 10.0
LOOK_AGAIN_S: Final = 30.0


class Pools:
    """Belongs to the control plane's event loop. `clock` is monotonic."""

    def __init__(self, runtime: Runtime, clock: Callable[[], float]) -> None:
        self._runtime = runtime
        self._clock = clock
        self._held: dict[str, float] | None = None
        self._looked_s = 0.0
        self._short: dict[str, tuple[float, Short]] = {}  # until when its machine has no more

    @property
    def held(self) -> Mapping[str, float] | None:
        """ACUs by instance; None: not looked at yet, or not for long."""
        return None if self._held and self._clock() - self._looked_s >= LOOK_AGAIN_S else self._held

    def short(self) -> dict[str, Short]:
        """Those whose machine had no more when they were last to get more."""
        now_s = self._clock()
        self._short = {of: kept for of, kept in self._short.items() if kept[0] > now_s}
        return {of: replace(each, holds=(self._held or {}).get(of, 0.0)) for of, (_, each) in self._short.items()}

    async def look(self) -> None:
        """Finds what is there. Raises NoPlaceError."""
        self._held, self._looked_s = dict(await self._runtime.held_capacity()), self._clock()

    async def hold(
        self, instance_id: str, host: str, acu: float, cpus_per_acu: float, at_most: float = math.inf
    ) -> float:
        """See Runtime.hold_capacity; `at_most`: what the machine has as a whole, beyond which nothing is asked for."""
        if self._held is None:
            await self.look()
        known = self._held if self._held is not None else {}
        try:
            got = await self._runtime.hold_capacity(instance_id, host, min(acu, at_most), cpus_per_acu)
        except BaseException:
            self._held = None  # it may have been done all the same
            raise
        known[instance_id] = got
        if not got:
            del known[instance_id]
        self._short.pop(instance_id, None)
        if got < acu:
            others = tuple(room for room in await self._rooms(cpus_per_acu) if room.host != host)
            self._short[instance_id] = self._clock() + ASK_AGAIN_S, Short(got, acu, others)
        return got

    async def _rooms(self, cpus_per_acu: float) -> Sequence[Room]:
        try:
            return await self._runtime.rooms(cpus_per_acu)
        except NoPlaceError:
            return ()  # then it stays where it is
