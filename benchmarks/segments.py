"""TCP segments with data that went out of this machine's connections, from the kernel's socket table (sock_diag).

On the loopback interface a segment carries up to 64 KiB, so that one segment is about one send: what the paper on
Aurora counts as a network I/O of the database node. The kernel counts them for each connection since it was made.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_DONE: Final = 3
_NLMSG_ERROR: Final = 2
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ESTABLISHED: Final = 1 << 1
_INET_DIAG_INFO: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST: Final = struct.Struct("=BBBBI48x")  # struct inet_diag_req_v2 with an empty socket id
_SOCKET: Final = struct.Struct("=BBBB")  # the beginning of struct inet_diag_msg
_PORTS: Final = struct.Struct("!HH")  # source and destination port, in network order
_INODE_AT: Final = 68
_SOCKET_BYTES: Final = 72
_ATTRIBUTE: Final = struct.Struct("=HH")
_DATA_SEGS_OUT_AT: Final = 156  # in struct tcp_info, since Linux 4.6
_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Connection:
    """An established one, from the side whose port is `local`."""

    local: int
    remote: int
    inode: int  # of the socket, as in the links of /proc/PID/fd
    data_segments_out: int


def connections() -> list[Connection]:
    """All of this network namespace, IPv4 and IPv6."""
    return [each for family in (socket.AF_INET, socket.AF_INET6) for each in _dump(family)]


def _dump(family: int) -> Iterator[Connection]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as link:  # 4: NETLINK_SOCK_DIAG
        link.settimeout(_TIMEOUT_S)
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, _ESTABLISHED)
        size = _HEADER.size + len(request)
        link.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            data = link.recv(1 << 18)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel refuses to list connections")
                yield _connection(data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]


def _connection(message: bytes) -> Connection:
    local, remote = _PORTS.unpack_from(message, _SOCKET.size)
    (inode,) = struct.unpack_from("=I", message, _INODE_AT)
    at, segments = _SOCKET_BYTES, 0
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _INET_DIAG_INFO and length >= _ATTRIBUTE.size + _DATA_SEGS_OUT_AT + 4:
            (segments,) = struct.unpack_from("=I", message, at + _ATTRIBUTE.size + _DATA_SEGS_OUT_AT)
        at += (length + 3) & ~3
    return Connection(local, remote, inode, segments)
