"""How many clients a server of threads has: its TCP connections. What comes over its Unix socket is ours."""

from __future__ import annotations

import os
from typing import Final

_LISTENING_TCP: Final = "0A"


def count_sessions(pid: int) -> int:
    """Of a process; 0 if it is gone."""
    try:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
        return len(sockets & _connected(pid))
    except OSError:
        return 0


def _connected(pid: int) -> set[str]:
    """Inode numbers of TCP connections in the process's network namespace."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        found |= {row[9] for row in rows if row[3] != _LISTENING_TCP}
    return found
