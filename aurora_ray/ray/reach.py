"""Reaching an actor: by its name, by its handle, by the process that it is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

import ray
import ray._private.state
import ray.util

from aurora_ray.compute import signals
from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.errors import UsageError
from aurora_ray.ray.actors import HOLD_S, ActorInfo
from aurora_ray.ray.calls import result_of

_log = logging.getLogger(__name__)

CRUMB: Final = 0.001  # of a resource that only says where
START_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 10.0
FIND_TIMEOUT_S: Final = 2.0  # an actor that was found and is well answers at once


async def answers(handle: Any, timeout_s: float) -> bool:
    """Whether it is there and at work."""
    try:
        await result_of(handle.info.remote(), timeout_s)
    except (ProcessGoneError, TimeoutError):
        return False
    return True


async def abort(handle: Any, info: ActorInfo) -> None:
    """SIGKILL where it can be sent, which ends stopped processes too; elsewhere it is Ray that ends it."""
    with contextlib.suppress(UsageError):  # it has just gone
        if is_here(info):
            signals.send(info.pid, info.ticks, signals.KILL)
    ray.kill(handle)


def is_here(info: ActorInfo) -> bool:
    """Whether it runs on this machine."""
    return bool(info.host == ray.util.get_node_ip_address())


async def signal(info: ActorInfo, signo: int, resume_after_s: float | None) -> list[int]:
    """Here directly, on another machine by a task of Ray's there."""
    if is_here(info):
        return signals.send(info.pid, info.ticks, signo, resume_after_s=resume_after_s)
    there = ray.remote(signals.send).options(num_cpus=0, resources={f"node:{info.host}": CRUMB}, max_retries=0)
    ref = there.remote(info.pid, info.ticks, signo, resume_after_s=resume_after_s)
    pids: list[int] = await result_of(ref, START_TIMEOUT_S)
    return pids


async def find(name: str, namespace: str) -> Any:
    """Its handle, or None."""
    try:
        return await asyncio.to_thread(ray.get_actor, name, namespace)
    except ValueError:
        return None


async def info_of(handle: Any, *of: str) -> ActorInfo | None:
    """Where a found actor runs; None if it has ended. Raises TimeoutError if it does not answer."""
    try:
        info: ActorInfo = await result_of(handle.info.remote(*of), FIND_TIMEOUT_S)
    except ProcessGoneError:
        return None
    return info


def noted_info(handle: Any) -> ActorInfo | None:
    """Where a living actor runs, as Ray has noted it: for one that does not say so itself."""
    # (Ray's public way to ask for this needs its dashboard.)
    noted = ray._private.state.actors(handle._actor_id.hex())
    if not noted or noted["State"] != "ALIVE":
        return None
    pid, host = int(noted["Pid"]), str(noted["Address"]["IPAddress"])
    return ActorInfo(pid, host, ticks=start_ticks(pid) or 0 if host == ray.util.get_node_ip_address() else 0)


async def wait_gone(handle: Any, *of: str) -> str:
    """Waits until an actor's process has ended, or what is in it; why. It is asked again and again, as each question is
    left behind over there if we die."""
    while True:
        try:
            await result_of(handle.hold.remote(*of), HOLD_S + CALL_TIMEOUT_S)
        except ProcessGoneError as error:
            return str(error)
        except TimeoutError:
            _log.info("an actor is silent, and its end is still waited for")
