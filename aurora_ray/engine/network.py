"""TCP ports for engines."""

from __future__ import annotations

import socket

from aurora_ray.rpc.listening import listen


def claim_port(host: str, port: int) -> int:
    """`port` if an engine can listen on it now, a free one if it is 0. Raises PortInUseError, ConfigurationError.

    The port is not held: between this and the engine's own bind someone may take it, which the engine then reports.
    """
    with listen(host, port, 1) as probe:
        claimed: int = probe.getsockname()[1]
        return claimed


def hold_port(host: str, port: int) -> socket.socket | None:
    """Keeps a port that no engine uses for now from all others; None if it cannot be had. Whoever connects is refused.

    It is bound without leave to share it, so that nobody else can listen there, and never listens itself.
    """
    holder = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.bind(address)
    except OSError:
        if holder is not None:
            holder.close()
        return None
    return holder
