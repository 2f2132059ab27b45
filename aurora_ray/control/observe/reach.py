"""Whether the control plane reaches an instance's process: the instance's side of a partition made on purpose.

Storage nodes have a gate in their servers (see rpc.partition); instances are asked by Ray, so here the gate is with the
one who asks. While it is shut, no question gets through and no answer or news of an end comes back; all of that happens
once the partition is healed. What whoever made the partition does itself (signals) is no question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import InstanceConfig, InstanceStatus, Opened, Outcome
    from aurora_ray.control.model.runtime import InstanceProcess

T = TypeVar("T")


class Reachable:
    """An InstanceProcess with a gate before it; open at first. Belongs to one event loop."""

    def __init__(self, process: InstanceProcess) -> None:
        self._process = process
        self._open = asyncio.Event()
        self._open.set()

    def cut(self, *, off: bool) -> None:
        """Shuts the gate, or opens it."""
        if off:
            self._open.clear()
        else:
            self._open.set()

    async def _through(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The gate is passed on the way there and on the way back, by errors too."""
        await self._open.wait()
        try:
            answer = await ask()
        except Exception:
            await self._open.wait()
            raise
        await self._open.wait()
        return answer

    @property
    def host(self) -> str:
        """See InstanceProcess."""
        return self._process.host

    @property
    def pid(self) -> int:
        """See InstanceProcess."""
        return self._process.pid

    @property
    def local_pid(self) -> int | None:
        """See InstanceProcess. Who is cut off cannot look at it from beside, either."""
        return self._process.local_pid if self._open.is_set() else None

    async def wait_gone(self) -> str:
        """See InstanceProcess."""
        return await self._through(self._process.wait_gone)

    async def open(self, config: InstanceConfig) -> Opened:
        """See InstanceProcess."""
        return await self._through(lambda: self._process.open(config))

    async def promote(self, config: InstanceConfig) -> Opened:
        """See InstanceProcess."""
        return await self._through(lambda: self._process.promote(config))

    async def wait_ended(self) -> Outcome:
        """See InstanceProcess."""
        return await self._through(self._process.wait_ended)

    async def status(self) -> InstanceStatus | None:
        """See InstanceProcess."""
        return await self._through(self._process.status)

    async def do(self, command: Command[T]) -> T:
        """See InstanceProcess."""
        return await self._through(lambda: self._process.do(command))

    async def metrics(self, timeout_s: float) -> bytes:
        """See InstanceProcess."""
        return await self._through(lambda: self._process.metrics(timeout_s))

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        """See InstanceProcess; partition or not."""
        return await self._process.signal(signo, resume_after_s)

    async def close(self, timeout_s: float) -> None:
        """See InstanceProcess."""
        async with asyncio.timeout(timeout_s):
            await self._open.wait()
        await self._process.close(timeout_s)

    async def abort(self) -> None:
        """See InstanceProcess."""
        await self._through(self._process.abort)

    async def end(self, *, fast: bool, destroy: bool, timeout_s: float, replaced: bool = False) -> None:
        """See InstanceProcess."""
        async with asyncio.timeout(timeout_s):
            await self._open.wait()
        await self._process.end(fast=fast, destroy=destroy, timeout_s=timeout_s, replaced=replaced)
