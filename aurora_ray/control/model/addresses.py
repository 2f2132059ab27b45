"""Addresses of a cluster's own, for drivers that tell instances apart by their host alone, at one port for all.

On one machine that is a loopback address for each endpoint and instance, at the port of the cluster endpoint. It
follows from the port that is theirs anyway, so nothing has to be given out or remembered: port 15435 (0x3c4b) is at
127.0.60.75. A driver makes the address out of HOST_PATTERN and the identifier that an instance has in sessions which
came by such an address (engine/postgres/functions.py).
"""

from __future__ import annotations

import ipaddress
from typing import Final

HOST_PATTERN: Final = "127.0.?"  # "?" is what `host_id` says


def host_id(port: int) -> str:
    """What is the own of whoever listens on that port, e.g. 60.75. Ports above 1023 are never at 127.0.0.1."""
    return f"{port >> 8}.{port & 0xFF}"


def own_address(port: int) -> str:
    """The loopback address of whoever listens on that port."""
    return HOST_PATTERN.replace("?", host_id(port))


def are_there(listen_host: str) -> bool:
    """Whether a fleet that listens there has such addresses: on this machine alone, and none is everybody's."""
    try:
        address = ipaddress.ip_address(listen_host)
    except ValueError:
        return listen_host == "localhost"
    return address.version == 4 and address.is_loopback
