"""All listening sockets of some processes: TCP, UDP, Unix, abstract ones; and whose they are."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

LISTENING = "0A"


class Door(NamedTuple):
    """`kind`: tcp, udp, unix, abstract. `place`: the address or the path. `owner`: the process's title.

    `loopback`: whether only this machine gets there.
    """

    kind: str
    place: str
    owner: str
    loopback: bool = True


def doors_of(pids: Iterable[int]) -> list[Door]:
    """What these processes listen at."""
    owners = {inode: title for pid in pids for inode, title in _sockets(pid)}
    found: set[Door] = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            host, _, port = fields[1].partition(":")
            listens = fields[3] == LISTENING if kind.startswith("tcp") else fields[2].endswith(":0000")
            if listens and fields[9] in owners:
                ip = _address(host)
                reached = "127.0.0.1" if ip.is_unspecified else f"[{ip}]" if ip.version == 6 else str(ip)
                place = f"{reached}:{int(port, 16)}"
                found.add(Door(kind[:3], place, owners[fields[9]], ip.is_loopback))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(None, 7)
        if int(fields[3], 16) & 0x10000 and fields[6] in owners:  # SO_ACCEPTCON
            place = fields[7] if len(fields) > 7 else ""
            found.add(Door("abstract" if place.startswith("@") else "unix", place, owners[fields[6]]))
    return sorted(found)


def _address(of_kernel: str) -> IPv4Address | IPv6Address:
    """The kernel writes the four bytes of each word in its own order."""
    words = [int(of_kernel[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(of_kernel), 8)]
    ip = ip_address(b"".join(words))
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def tree_of(pids: Iterable[int]) -> set[int]:
    """These processes and all below them."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, left = set[int](), list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def _sockets(pid: int) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    yield target[8:-1], title
