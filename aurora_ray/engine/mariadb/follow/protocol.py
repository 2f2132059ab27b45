"""Packets of MySQL's protocol, as far as a replica and whom it follows exchange them. Pure."""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from aurora_ray.errors import MalformedError

PACKET_BYTES_MAX: Final = 0xFFFFFF
COM_QUIT: Final = 0x01
COM_QUERY: Final = 0x03
COM_PING: Final = 0x0E
COM_BINLOG_DUMP: Final = 0x12
COM_REGISTER_SLAVE: Final = 0x15
OK: Final = b"\x00\x00\x00\x02\x00\x00\x00"
EOF: Final = b"\xfe\x00\x00\x02\x00"
_PLUGIN: Final = b"mysql_native_password"
_CAPABILITIES: Final = 0x1 | 0x4 | 0x8 | 0x200 | 0x2000 | 0x8000 | 0x80000
_UTF8: Final = 45
_VAR_STRING: Final = 253


def framed(payload: bytes, sequence: int) -> tuple[bytes, int]:
    """A payload as packets from a number on, and the next number."""
    parts = []
    for start in range(0, len(payload) + 1, PACKET_BYTES_MAX):
        part = payload[start : start + PACKET_BYTES_MAX]
        parts.append(len(part).to_bytes(3, "little") + bytes([sequence % 256]) + part)
        sequence += 1
    return b"".join(parts), sequence


def greeting(version: str, scramble: bytes) -> bytes:
    """The first packet of a server; `scramble`: 20 bytes without zeros."""
    low, high = _CAPABILITIES & 0xFFFF, _CAPABILITIES >> 16
    return b"".join(
        (
            b"\x0a",
            version.encode() + b"\0",
            struct.pack("<I", 1),
            scramble[:8] + b"\0",
            struct.pack("<HBHHB", low, _UTF8, 2, high, len(scramble) + 1),
            bytes(10),
            scramble[8:] + b"\0",
            _PLUGIN + b"\0",
        )
    )


def proves(response: bytes, scramble: bytes, password: str) -> bool:
    """Whether a client's answer to the greeting says that it knows the password."""
    end = response.find(b"\0", 32)
    if end < 0 or len(response) < end + 22 or response[end + 1] != 20:
        return False
    inner = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    stored = hashlib.sha1(inner, usedforsecurity=False).digest()
    mask = hashlib.sha1(scramble + stored, usedforsecurity=False).digest()
    return bytes(a ^ b for a, b in zip(inner, mask, strict=True)) == response[end + 2 : end + 22]


def denial(message: str) -> bytes:
    """An error packet."""
    return b"\xff" + struct.pack("<H", 1236) + b"#HY000" + message.encode()


def row(values: dict[str, str]) -> list[bytes]:
    """The packets of a result with one row of text."""
    columns = [_column(name) for name in values]
    return [bytes([len(columns)]), *columns, EOF, b"".join(_text(value.encode()) for value in values.values()), EOF]


class Dump(NamedTuple):
    """What a replica asks for: from which position of which file on."""

    name: str
    position: int


def dump_of(payload: bytes) -> Dump:
    """The content of COM_BINLOG_DUMP. Raises MalformedError."""
    if len(payload) < 11:
        raise MalformedError(f"a request for a binary log of {len(payload)} bytes")
    return Dump(payload[11:].decode(errors="replace"), int.from_bytes(payload[1:5], "little"))


def answer(query: str, facts: dict[str, str]) -> list[bytes]:
    """What a server says to a replica's questions about it: by the first of the words in `facts` that occurs."""
    if query.lstrip().upper().startswith("SET"):
        return [OK]
    found = next((value for word, value in facts.items() if word.lower() in query.lower()), "")
    if query.lstrip().upper().startswith("SHOW"):
        return row({"Variable_name": query.split("'")[1] if "'" in query else "", "Value": found})
    return row({"value": found})


def _column(name: str) -> bytes:
    empty = _text(b"")
    fixed = b"\x0c" + struct.pack("<HIBHB2x", _UTF8, 1024, _VAR_STRING, 0, 0)
    return _text(b"def") + empty * 3 + _text(name.encode()) + empty + fixed


def _text(content: bytes) -> bytes:
    if len(content) < 251:
        return bytes([len(content)]) + content
    return b"\xfc" + len(content).to_bytes(2, "little") + content
