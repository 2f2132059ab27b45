"""TCP ports for engines."""

from __future__ import annotations

from aurora_ray.rpc.listening import listen


def claim_port(host: str, port: int) -> int:
    """`port` if an engine can listen on it now, a free one if it is 0. Raises PortInUseError, ConfigurationError.

    The port is not held: between this and the engine's own bind someone may take it, which the engine then reports.
    """
    with listen(host, port, 1) as probe:
        claimed: int = probe.getsockname()[1]
        return claimed
