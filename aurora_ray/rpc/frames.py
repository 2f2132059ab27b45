"""HTTP/2 frames (RFC 9113): their types, their numbers, and how they are packed."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Kind(IntEnum):
    """Types of frames (RFC 9113, section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag:
    """Of a frame; ACK and END_STREAM share a bit, in frames of different types. Numbers: enumerations are slow."""

    END_STREAM: Final = 0x1
    ACK: Final = 0x1
    END_HEADERS: Final = 0x4
    PADDED: Final = 0x8
    PRIORITY: Final = 0x20


class Code(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


FRAME_HEAD: Final = struct.Struct(">HBBBI")  # length in 24 bits, type, flags, stream


class ProtocolError(Exception):
    """The other side does not speak HTTP/2 as it should; the connection ends with `code`."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Frame(NamedTuple):
    """One that came in."""

    flags: int
    stream: int
    data: bytes


def pack_frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    nbytes = len(payload)
    return FRAME_HEAD.pack(nbytes >> 8, nbytes & 0xFF, kind, flags, stream) + payload


def unpadded(data: bytes) -> bytes:
    """What a padded frame carries. Raises ProtocolError."""
    if not data or data[0] >= len(data):
        raise ProtocolError(Code.PROTOCOL_ERROR, "more padding than content")
    return data[1 : len(data) - data[0]]
