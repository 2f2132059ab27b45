"""The endpoints' process as a Ray actor: EndpointHost behind Ray calls, and the control plane's handle of it.

It runs on the Ray cluster's head, the one machine whose loss ends the cluster anyway, so the endpoints' address stays.
It belongs to no AZ. Its relays are threads of their own that need neither Python nor Ray to carry bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
import ray.util

from aurora_ray import telemetry
from aurora_ray.compute.process import configure_process
from aurora_ray.control.model.runtime import NoPlaceError, ProcessGoneError
from aurora_ray.endpoint.bell import HeldBell
from aurora_ray.endpoint.host import EndpointHost, EndpointOrder, EndpointState
from aurora_ray.ray.actors import HOLD_S, ActorInfo, remote_class
from aurora_ray.ray.calls import result_of
from aurora_ray.ray.reach import CALL_TIMEOUT_S, CRUMB, START_TIMEOUT_S, noted_info, wait_gone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.control.model.endpoint_runtime import EndpointProcess
    from aurora_ray.control.model.runtime import ControlConfig

NAME: Final = "endpoints"
HEAD_RESOURCE: Final = "node:__internal_head__"


class EndpointActor:
    """See the module's text."""

    def __init__(self, fleet_dir: str) -> None:
        configure_process("endpoint", NAME, Path(fleet_dir))
        self._host = EndpointHost()
        self._bell: HeldBell | None = None

    async def info(self) -> ActorInfo:
        """Where it is."""
        return ActorInfo(os.getpid(), ray.util.get_node_ip_address())

    async def hold(self) -> None:
        """A watch: see InstanceActor.hold."""
        await asyncio.sleep(HOLD_S)

    async def apply(
        self, orders: Sequence[EndpointOrder], generation: int, trace: Mapping[str, str]
    ) -> tuple[EndpointState, ...]:
        """See EndpointHost.apply."""
        with telemetry.attached(telemetry.extract_dict(trace)), telemetry.span("endpoint.apply"):
            return await asyncio.to_thread(self._host.apply, orders, generation)

    async def states(self) -> tuple[EndpointState, ...]:
        """See EndpointHost.states."""
        return await asyncio.to_thread(self._host.states)

    async def withdraw(self, names: Sequence[str], generation: int) -> tuple[str, ...]:
        """See EndpointHost.withdraw."""
        return await asyncio.to_thread(self._host.withdraw, names, generation)

    async def wait_held(self, names: Sequence[str]) -> tuple[str, ...]:
        """A watch, see EndpointHost.held; empty when it is time to ask again."""
        self._bell = self._bell or HeldBell()
        return await self._bell.wait(lambda: self._host.held(names), HOLD_S)


class RayEndpoints:
    """The control plane's handle."""

    def __init__(self, handle: Any, info: ActorInfo) -> None:
        self._handle = handle
        self.host = info.host

    async def wait_gone(self) -> str:
        """Why it ended."""
        return await wait_gone(self._handle)

    async def apply(
        self, orders: Sequence[EndpointOrder], generation: int, timeout_s: float
    ) -> Sequence[EndpointState]:
        """See EndpointHost.apply."""
        trace = telemetry.inject_dict()
        states: Sequence[EndpointState] = await result_of(
            self._handle.apply.remote(orders, generation, trace), timeout_s
        )
        return states

    async def states(self, timeout_s: float) -> Sequence[EndpointState]:
        """See EndpointHost.states."""
        states: Sequence[EndpointState] = await result_of(self._handle.states.remote(), timeout_s)
        return states

    async def withdraw(self, names: Sequence[str], generation: int, timeout_s: float) -> Sequence[str]:
        """See EndpointHost.withdraw."""
        used: Sequence[str] = await result_of(self._handle.withdraw.remote(names, generation), timeout_s)
        return used

    async def wait_held(self, names: Sequence[str]) -> Sequence[str]:
        """See EndpointProcess."""
        while True:
            with contextlib.suppress(TimeoutError):
                held: Sequence[str] = await result_of(self._handle.wait_held.remote(names), HOLD_S + CALL_TIMEOUT_S)
                if held:
                    return held

    async def end(self) -> None:
        """Ends it at once."""
        ray.kill(self._handle)


class RayEndpointRuntime:
    """See EndpointRuntime. `namespace` is the fleet's."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    async def start(self, config: ControlConfig) -> EndpointProcess:
        """A new actor."""
        cls = remote_class(EndpointActor, name=NAME, namespace=self._namespace, resources={HEAD_RESOURCE: CRUMB})
        try:
            handle = cls.remote(str(config.data_dir))
        except ValueError as error:  # the name is taken: an earlier one is on its way out
            raise ProcessGoneError(f"actor {NAME} is still there and cannot be started anew yet") from error
        try:
            return RayEndpoints(handle, await result_of(handle.info.remote(), START_TIMEOUT_S))
        except BaseException as error:
            ray.kill(handle)
            if isinstance(error, TimeoutError):
                raise NoPlaceError(f"the endpoints' process did not start in {START_TIMEOUT_S:g} s") from None
            raise

    async def find(self) -> EndpointProcess | None:
        """The actor of an earlier control plane, whether it answers or not."""
        try:
            handle = await asyncio.to_thread(ray.get_actor, NAME, self._namespace)
        except ValueError:
            return None
        try:
            return RayEndpoints(handle, await result_of(handle.info.remote(), CALL_TIMEOUT_S))
        except ProcessGoneError:
            return None
        except (
            TimeoutError
        ):  # its relays may be at work all the same: if it is stuck, that shows when it is told something
            noted = await asyncio.to_thread(noted_info, handle)
            return RayEndpoints(handle, noted) if noted is not None else None
