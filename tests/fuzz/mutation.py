"""Sound bytes made unsound: a few changes each, of the kinds that find mistakes in decoders."""

import random
import struct

import google_crc32c

_INTERESTING = (0, 1, 7, 8, 31, 33, 255, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF)
LENGTH_MAX = 1 << 16


def mutated(choose: random.Random, sound: bytes) -> bytes:
    """One to four changes of `sound`; at most LENGTH_MAX bytes longer."""
    content = bytearray(sound)
    for _ in range(choose.choice((1, 1, 2, 4))):
        _change(choose, content)
    return bytes(content)


def _change(choose: random.Random, content: bytearray) -> None:
    kind = choose.random()
    at = choose.randrange(len(content) + 1)
    if kind < 0.4 and at < len(content):
        content[at] = choose.randrange(256)
    elif kind < 0.65 and len(content) >= 4:
        at = choose.randrange(len(content) - 3)
        struct.pack_into("<I", content, at, choose.choice((*_INTERESTING, len(content))))
    elif kind < 0.75:
        del content[at:]
    elif kind < 0.85:
        del content[at : at + choose.randrange(16)]
    elif kind < 0.95:
        content[at:at] = choose.randbytes(choose.randrange(24))
    else:
        start = choose.randrange(len(content) + 1)
        content[at:at] = content[start : start + choose.randrange(200)]


def with_crc(content: bytes) -> bytes:
    """A batch whose CRC holds again, so that the checks behind it are reached."""
    if len(content) <= 8:
        return content
    return content[:4] + google_crc32c.value(content[8:]).to_bytes(4, "little") + content[8:]
