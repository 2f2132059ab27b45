"""Ending an available instance in order, as its engine shall start anew: in a fresh process, or as another kind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aurora_ray.control.model.runtime import ProcessGoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.control.observe.known import Instance


async def end_in_order(instance: Instance, notify: Callable[[], None], timeout_s: float) -> None:
    """Cuts its sessions, stops its engine and ends its process; one that takes longer than `timeout_s` is killed.

    `notify` tells the loop, which opens it again. Its end is no failure: nobody is told of a failover.
    """
    instance.end_is_seen()
    instance.stopping()
    notify()  # sessions are cut before the engine ends
    with contextlib.suppress(ProcessGoneError):
        try:
            await instance.process.end(fast=True, destroy=False, replaced=True, timeout_s=timeout_s)
        except TimeoutError:
            await instance.process.abort()


async def end_incarnation(instance: Instance, notify: Callable[[], None], timeout_s: float, reason: str) -> None:
    """Cuts its sessions and ends its incarnation in order; the process stays, and the loop opens it again. One that
    cannot do so in `timeout_s` is killed. Its end is no failure: nobody is told of a failover."""
    instance.end_is_seen()
    instance.stopping()
    notify()  # sessions are cut before the engine ends
    try:
        await instance.process.close(timeout_s)
    except ProcessGoneError:
        return
    except Exception:
        with contextlib.suppress(ProcessGoneError):
            await instance.process.abort()
        raise
    instance.ended(reason)
