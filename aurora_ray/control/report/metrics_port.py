"""The fleet's metrics for Prometheus: `http://127.0.0.1:<port>/metrics`, on the machine that the control plane runs on.

It is there by default, so that nobody has to restart a fleet to look into it, and on loopback whatever other addresses
are in use: there is no content of any database in it, but names, sizes and what goes on are nobody else's business.
To look from elsewhere, let a scraper run here or tunnel to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray import telemetry
from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable


HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 15400
PORTS: Final = 32  # that many fleets on one machine; what follows belongs to endpoints and engines


class MetricsPort:
    """Belongs to the control plane's event loop. A port that cannot be had holds up nothing: it is a note."""

    def __init__(self, render: Callable[[], Awaitable[bytes]], say: Callable[[str], None]) -> None:
        """`render` gives the text that is served, see metrics.fleet_metrics."""
        self.url: str | None = None
        self.notes: tuple[str, ...] = ()
        self._render = render
        self._say = say
        self._server: asyncio.Server | None = None

    async def open(self, port: int | None) -> None:
        """Listens on `port`; None: on the first free one from FIRST_PORT on, 0: nowhere."""
        if port == 0:
            return
        ports = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,)
        render = telemetry.Rendered(self._render)
        for each in ports:
            try:
                self._server = await telemetry.serve_metrics(HOST, each, render)
            except ConfigurationError as error:
                problem = str(error)
                continue
            self.url = f"http://{HOST}:{each}/metrics"
            return
        if port is None:
            problem = f"Cannot serve metrics: none of the ports {ports[0]} to {ports[-1]} is free."
        self.notes = (problem,)
        self._say(problem)

    def close(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()
        self._server, self.url = None, None
