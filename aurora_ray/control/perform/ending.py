"""Ending an available instance in order, because its engine shall start anew in a fresh process."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.runtime import ProcessGoneError

if TYPE_CHECKING:
    from aurora_ray.control.observe.processes import Instance
    from aurora_ray.control.plane import ControlPlane


async def end_in_order(plane: ControlPlane, instance: Instance, timeout_s: float) -> None:
    """Cuts its sessions, stops its engine and ends its process; one that takes longer than `timeout_s` is killed.

    The loop opens it again. Its end is no failure: nobody is told of a failover.
    """
    instance.unseen_end = False
    instance.seen = replace(instance.seen, phase=InstancePhase.STOPPING)
    plane.notify()  # sessions are cut before the engine ends
    with contextlib.suppress(ProcessGoneError):
        try:
            await instance.process.end(fast=True, destroy=False, replaced=True, timeout_s=timeout_s)
        except TimeoutError:
            await instance.process.abort()
