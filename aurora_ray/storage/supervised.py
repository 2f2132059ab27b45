"""Long-running work of a node that no single failure may end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

PAUSE_S: Final = (0.1, 30.0)  # first and longest wait after a failure
CALM_S: Final = 60.0  # work that ran for so long begins with the first pause again


async def supervised(
    name: str, work: Callable[[], Awaitable[object]], counters: Counter[str], *, pause_s: tuple[float, float] = PAUSE_S
) -> None:
    """Does `work` until it is done; one that an exception ended begins anew after a pause, twice as long each time.

    Each kind of failure is logged once with all its circumstances and counted always, as `failed_<name>`. Being
    cancelled ends it, as does what is no Exception.
    """
    wait_s, seen = pause_s[0], ""
    while True:
        started_s = time.monotonic()
        try:
            await work()
        except Exception as error:
            counters[f"failed_{name}"] += 1
            if (said := repr(error)) != seen:
                seen = said
                _log.exception("%s failed and goes on in %.1f s; the same again is counted only", name, wait_s)
        else:
            return
        if time.monotonic() - started_s > CALM_S:
            wait_s = pause_s[0]
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, pause_s[1])
