"""The process that has the endpoints, as the control plane knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.control.model.runtime import ControlConfig
    from aurora_ray.endpoint.host import EndpointOrder, EndpointState


class EndpointProcess(Protocol):
    """The process that has the endpoints. Calls raise ProcessGoneError when it has ended."""

    @property
    def host(self) -> str:
        """The machine that it runs on."""

    async def wait_gone(self) -> str:
        """Waits, without a limit, until the process has ended; why."""

    async def apply(
        self, orders: Sequence[EndpointOrder], generation: int, timeout_s: float
    ) -> Sequence[EndpointState]:
        """See EndpointHost.apply."""

    async def states(self, timeout_s: float) -> Sequence[EndpointState]:
        """See EndpointHost.states."""

    async def withdraw(self, names: Sequence[str], generation: int, timeout_s: float) -> Sequence[str]:
        """See EndpointHost.withdraw."""

    async def wait_held(self, names: Sequence[str]) -> Sequence[str]:
        """Waits, without a limit, until somebody is held at one of these endpoints; at which."""

    async def end(self) -> None:
        """Ends it at once."""


class EndpointRuntime(Protocol):
    """Starts and finds that process."""

    async def start(self, config: ControlConfig) -> EndpointProcess:
        """Starts it and waits until it answers."""

    async def find(self) -> EndpointProcess | None:
        """The one that an earlier control plane started, if it still runs."""
