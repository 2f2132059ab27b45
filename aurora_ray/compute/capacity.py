"""The capacity that an incarnation was given, put in force: CPU by quota, memory by the budget of its page cache with a
net below (`memory.py`), and the engine's settings that can change while it runs.

The engine starts without a quota, as whoever wakes a cluster waits for that; it is held when it accepts statements.
The net is raised before anything else is, and lowered last, LOWER_AFTER_S later: what runs may still use what it was
given before.
What the budget takes back the machine has back: pages that leave the cache leave the system's memory with them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.compute.memory import MemoryNet
from aurora_ray.compute.quota import CpuQuota
from aurora_ray.engine.sizes import CACHE_SHARE, acu_on, size_of_acu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.compute.config import CapacityOrder, InstanceConfig
    from aurora_ray.engine.base import Engine
    from aurora_ray.engine.machine import Machine
    from aurora_ray.engine.sizes import InstanceSize
    from aurora_ray.mount.mount import MountedVolume

LOOK_EVERY_S: Final = 0.2  # at what it uses
LOOK_WITHIN_S: Final = 0.1  # or what was seen last is told
LOWER_AFTER_S: Final = 10.0  # a step down; and again, until the net lies where it shall


class Granted:
    """Of one incarnation. `machine`: where it is; belongs to one event loop."""

    def __init__(
        self, config: InstanceConfig, order: CapacityOrder, machine: Machine, opened: InstanceSize | None = None
    ) -> None:
        """`opened`: the size with which the engine runs already."""
        self._order = order
        self._machine = machine
        opened = opened or self._size_of(order)
        self._least_bytes = opened.least_bytes or opened.memory_bytes
        self._most_bytes = opened.most_bytes or opened.memory_bytes
        place = hashlib.sha256(str(config.dirs.root).encode()).hexdigest()[:12]
        name = f"aurora-ray-{config.instance_id}-{place}"
        self._quota, self._net = CpuQuota(name), MemoryNet(name)
        self._lowering: asyncio.Task[None] | None = None
        self._cache_bytes = 0  # that the mount was opened with
        self._since_ns = time.time_ns()  # tells it from all others of the instance
        self._acu_s = 0.0  # that were had up to ...
        self._counted_s: float | None = None  # ... then; None while it does not serve
        self._ended = False

    @property
    def acu(self) -> float:
        """What is in force: the machine may have no more."""
        return min(self._order.acu, acu_on(self._machine))

    @property
    def size(self) -> InstanceSize:
        """What it means for the engine; what cannot change is as it was at the opening."""
        return replace(self._size_of(self._order), least_bytes=self._least_bytes, most_bytes=self._most_bytes)

    def _size_of(self, order: CapacityOrder) -> InstanceSize:
        return size_of_acu(
            self._machine, order.acu, least=order.least, most=order.most, cpus_per_acu=order.cpus_per_acu
        )

    async def begin(self, engine: Engine, mounted: MountedVolume) -> None:
        """The engine accepts statements: from now on its capacity counts."""
        self._counted_s = time.monotonic()
        self._cache_bytes = int(mounted.stats().get("cache_budget_bytes", 0))
        mounted.set_cache_bytes(self._budget)
        if engine.pid is not None:
            await asyncio.to_thread(self._quota.hold, engine.pid, self.size.cpus)
            await asyncio.to_thread(self._net.hold, engine.pid, self.size.memory_bytes)
            self._lower_later()

    async def scale(self, order: CapacityOrder, mounted: MountedVolume) -> None:
        """Another capacity, in force when this returns but for what the engine must be told (`size`)."""
        self._count()
        self._order = order
        await asyncio.to_thread(self._net.change, self.size.memory_bytes)
        await asyncio.to_thread(self._quota.limit, self.size.cpus)
        mounted.set_cache_bytes(self._budget)
        self._lower_later()

    async def end(self, mounted: MountedVolume) -> None:
        """Nothing holds it back any more."""
        self.stop_counting()
        self._stop_lowering()
        await asyncio.to_thread(self._net.free)
        mounted.set_cache_bytes(self._cache_bytes)
        await asyncio.to_thread(self._quota.limit, 0)

    def _lower_later(self) -> None:
        self._stop_lowering()
        if not self._net.is_lowered:
            self._lowering = asyncio.create_task(self._lower(), name="lowers the bound on memory")

    def _stop_lowering(self) -> None:
        if self._lowering is not None:
            self._lowering.cancel()
            self._lowering = None

    async def _lower(self) -> None:
        while not self._net.is_lowered:
            await asyncio.sleep(LOWER_AFTER_S)
            await asyncio.to_thread(self._net.lower)

    @property
    def _budget(self) -> int:
        wanted = int(self.size.memory_bytes * CACHE_SHARE)
        return min(wanted, self._cache_bytes) if self._cache_bytes else wanted

    def _count(self) -> None:
        if self._counted_s is not None:
            before_s, self._counted_s = self._counted_s, time.monotonic()
            self._acu_s += self.acu * (self._counted_s - before_s)

    def stop_counting(self) -> None:
        """What it has from now on is for its end."""
        self._count()
        self._counted_s, self._ended = None, True

    def stats(self) -> Mapping[str, int | float]:
        """Numbers for `status`. `acu_s`: ACU-seconds since `metered_since_ns`, at `metered_at_s` (Unix times)."""
        self._count()
        return {
            "acu_s": round(self._acu_s, 6),
            "metered_since_ns": self._since_ns,
            "metered_at_s": time.time(),
            "ended": int(self._ended),
            "acu": self.acu,
            "acu_room": acu_on(self._machine),
            "cpus_per_acu": self._order.cpus_per_acu,
            "cpu_enforced": int(self._quota.is_enforced),
            "memory_limit_bytes": self._net.in_force_bytes,
        }

    def held_back_s(self) -> float:
        """See CpuQuota; from any thread."""
        return self._quota.held_back_s()

    def close(self) -> None:
        """The engine has ended."""
        self.stop_counting()
        self._stop_lowering()
        self._quota.close()
        self._net.close()
