"""TCP ports for engines."""

from __future__ import annotations

import errno
import socket

from aurora_ray.errors import ConfigurationError, PortInUseError


def claim_port(host: str, port: int) -> int:
    """`port` if an engine can listen on it now, a free one if it is 0. Raises PortInUseError, ConfigurationError.

    The port is not held: between this and the engine's own bind someone may take it, which the engine then reports.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as engines do: old connections are no obstacle
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            kind = PortInUseError if error.errno == errno.EADDRINUSE else ConfigurationError
            raise kind(_sentence(host, port, error)) from error
        claimed: int = probe.getsockname()[1]
        return claimed


def _sentence(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there or choose another port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges: choose one above 1023"
    return f"cannot listen on {host}, port {port}: {error.strerror}"
