"""Sockets that listen on TCP, and what is said if they cannot."""

from __future__ import annotations

import errno
import socket

from aurora_ray.errors import ConfigurationError, PortInUseError


def listen(host: str, port: int, backlog: int, *, flags: int = 0) -> socket.socket:
    """A socket that listens on `host:port` (0: any free port). `flags`: more of its type, as socket.SOCK_NONBLOCK.

    Raises PortInUseError, ConfigurationError.
    """
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM | flags)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections are no obstacle to a restart
        listener.bind(address)
        listener.listen(backlog)
    except OSError as error:
        if listener is not None:
            listener.close()
        kind = PortInUseError if error.errno == errno.EADDRINUSE else ConfigurationError
        raise kind(_sentence(host, port, error)) from error
    return listener


def _sentence(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there or choose another port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges: choose one above 1023"
    return f"cannot listen on {host}, port {port}: {error.strerror}"
