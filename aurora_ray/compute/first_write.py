"""When a volume's VDL moved for the first time after some moment: the end of an outage, as a trace tells it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aurora_ray.volume.durable import DurableLsn

KEPT = 1024


class FirstWrite:
    """Listens to the VDL of an open volume until it has been asked once."""

    def __init__(self, durable: DurableLsn) -> None:
        self._advances: deque[tuple[int, int]] = deque(maxlen=KEPT)  # Unix time in ns, VDL
        self._moved = asyncio.Event()
        self._listening = durable.listen(self._on_vdl)

    def _on_vdl(self, vdl: int) -> None:
        self._advances.append((time.time_ns(), vdl))
        self._moved.set()

    async def after(self, moment_ns: int, timeout_s: float) -> tuple[int, int] | None:
        """The first advance at or after `moment_ns` (Unix time): when, and the VDL. None if there is none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._moved.clear()
                    for advance in self._advances:
                        if advance[0] >= moment_ns:
                            return advance
                    self._advances.clear()
                    await self._moved.wait()
        except TimeoutError:
            return None
        finally:
            self._listening.stop()
