"""The control plane's Ray actor: a loop thread with a ControlPlane on it, which serves the control API. Of Ray's calls
there are two: who it is, and to stop.

It is named, detached, and the only actor that Ray restarts by itself (`max_restarts=-1`): whatever kills it, the new
one finds the processes that run and reads the declared state from the control volume.

One that was fenced by another gives way (`give_way`). Ray starts an actor anew on another machine when it does not hear
of the first one, which may still run there: the name, the handle and the actor's id lead to the successor then, so
what is left of the first one may end nothing but its own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar
from uuid import uuid4

import ray
import ray.util

from aurora_ray.compute.loop import LoopThread
from aurora_ray.compute.process import configure_process
from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.api.server import ControlServer
from aurora_ray.control.model.runtime import ADDRESS_FILE, ControlConfig, ProcessGoneError
from aurora_ray.control.plane import ControlPlane
from aurora_ray.errors import FencedError
from aurora_ray.ray.actors import remote_class
from aurora_ray.ray.calls import result_of, wait_for
from aurora_ray.ray.endpoints import RayEndpointRuntime
from aurora_ray.ray.reach import CALL_TIMEOUT_S, CRUMB
from aurora_ray.ray.runtime import CONTROL_NAME, RayRuntime, namespace_of
from aurora_ray.rpc.admission import OURS
from aurora_ray.rpc.partition import CONTROL_PARTY, PARTY
from aurora_ray.rpc.secret_file import FILE_NAME, ensure_secret

_log = logging.getLogger(__name__)
T = TypeVar("T")

SLACK_S: Final = 10.0  # a call's own timeout speaks first, with a sentence
SHUTDOWN_TIMEOUT_S: Final = 240.0
GIVE_WAY_EVERY_S: Final = 5.0
BEGIN_AGAIN_S: Final = 1.0
MADE_WITHIN_S: Final = 30.0


class ControlActor:
    """See the module's text. Every call raises errors of ours."""

    def __init__(self, config: ControlConfig) -> None:
        try:
            self._begin(config)
        except Exception:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                raise  # whoever starts the fleet hears of it
            _log.exception("the control plane cannot begin; the next one tries")
            time.sleep(BEGIN_AGAIN_S)
            os._exit(1)  # raised, it would be the last one: Ray starts a process anew that died, and no other

    def _begin(self, config: ControlConfig) -> None:
        PARTY.name = CONTROL_PARTY
        configure_process("control", "control", config.data_dir, {"aurora.region": config.region})
        OURS.set(ensure_secret(config.data_dir / FILE_NAME))  # a fleet from before there were secrets gets one here
        self._config = config
        self._life = uuid4().hex
        self._loop = LoopThread("control")
        self._plane = self._loop.call(_make(config), SLACK_S)
        self._server = ControlServer(self._plane, ControlApi(self._plane))
        self._loop.call(self._server.start(), SLACK_S)
        self._loop.submit(_run(self._plane, self._life))

    async def _call(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return await self._loop.ask(work, timeout_s + SLACK_S)

    async def info(self) -> dict[str, Any]:
        """Who it is and what it is responsible for."""
        return {
            "pid": os.getpid(),
            "life": self._life,
            "data_dir": str(self._config.data_dir),
            "fleet_id": str(self._plane.fleet.fleet_id),
            "region": self._plane.fleet.region,
            "epoch": self._plane.declared.epoch,
            "open": self._plane.is_open,
        }

    async def shutdown(self, destroy: bool) -> None:
        """Stops all processes in order; the actor itself stays, idle, until it is killed."""
        (self._config.data_dir / ADDRESS_FILE).unlink(missing_ok=True)
        await self._call(self._plane.shutdown(destroy=destroy), SHUTDOWN_TIMEOUT_S)


async def _make(config: ControlConfig) -> ControlPlane:
    """On the loop that it is going to live on."""
    namespace = namespace_of(config.fleet_id)
    plane = ControlPlane(config, RayRuntime(namespace, small=config.small), endpoints=RayEndpointRuntime(namespace))
    await plane.metrics_port.open(config.metrics_port)
    return plane


async def _run(plane: ControlPlane, life: str) -> None:
    try:
        await plane.run()
    except FencedError as error:
        _log.warning("%s", error)
        await give_way(life, lambda: successor_life(plane.config.fleet_id), lambda: os._exit(0))
    except Exception:
        _log.exception("the control plane failed; a new one takes its place")
        os._exit(1)  # not an orderly exit: Ray starts the next one


async def successor_life(fleet_id: str) -> str:
    """The life of the fleet's control actor that Ray knows now; empty while it does not answer."""
    handle = await asyncio.to_thread(find_control, fleet_id)
    if handle is None:
        return ""
    try:
        info = await result_of(handle.info.remote(), CALL_TIMEOUT_S)
    except (ProcessGoneError, TimeoutError):
        return ""
    return str(info.get("life", ""))


async def give_way(life: str, ask: Callable[[], Awaitable[str]], end: Callable[[], None]) -> None:
    """Ends this process once the actor is known to live elsewhere. If it is this one that Ray knows (what fenced it is
    no actor of this cluster), it stays and answers that it was replaced: Ray would start it anew, and it would fence
    the other one in its turn."""
    while True:
        other = await ask()
        if other and other != life:
            end()
            return
        await asyncio.sleep(GIVE_WAY_EVERY_S)


def ensure_control(config: ControlConfig) -> Any:
    """The handle of the control actor of this Ray cluster, which is started if there is none: on this machine, where
    the fleet's file is, now and whenever Ray starts it again."""
    here = {f"node:{ray.util.get_node_ip_address()}": CRUMB}
    options = {
        "name": CONTROL_NAME,
        "namespace": namespace_of(config.fleet_id),
        "get_if_exists": True,
        "max_restarts": -1,
    }
    return remote_class(ControlActor, resources=here, **options).remote(config)


def require_made(control: Any) -> None:
    """Raises NotMadeError if a control actor failed in its beginning. One that is slow is not waited for: others see
    whether it comes."""
    with contextlib.suppress(TimeoutError):
        wait_for(control.info.remote(), MADE_WITHIN_S)


def find_control(fleet_id: str) -> Any:
    """The handle of a fleet's control actor, or None. Without an id: that of a fleet of an older version."""
    try:
        return ray.get_actor(CONTROL_NAME, namespace_of(fleet_id))
    except ValueError:
        return None
