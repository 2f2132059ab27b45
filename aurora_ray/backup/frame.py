"""One object as it lies in the bucket: compressed, encrypted if there is a key, guarded by a CRC. Pure.

    0 magic "ARBO"   4 u16 format   6 u16 flags (1: encrypted)   8 u32 crc32c over all that follows   12 the body

The body is a zstd frame; where there is a key, a nonce of 12 bytes and its AES-256-GCM ciphertext. The object's name is
authenticated with it, so nobody without the key can put one object in another's place.
"""

from __future__ import annotations

import secrets
import struct
from typing import TYPE_CHECKING, Final

import google_crc32c
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aurora_ray.errors import ConfigurationError, MalformedError
from aurora_ray.log import compression
from aurora_ray.rpc.secret_file import load_secret

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1
CONTENT_BYTES_MAX: Final = 1 << 30
_HEADER: Final = struct.Struct("<4sHHI")
_MAGIC: Final = b"ARBO"
_ENCRYPTED: Final = 1
_NONCE_BYTES: Final = 12


class Key:
    """What a backup is encrypted with. Not shown when printed."""

    def __init__(self, raw: bytes) -> None:
        """`raw`: 32 bytes."""
        self._cipher = AESGCM(raw)

    @classmethod
    def load(cls, path: Path) -> Key:
        """The key of a private file (mode 0600) of 64 hexadecimal digits. Raises ConfigurationError."""
        try:
            return cls(load_secret(path, "a backup's key").subkey("backup"))
        except FileNotFoundError:
            raise ConfigurationError(
                f"there is no {path}: make a key with `(umask 077; openssl rand -hex 32 > {path})`, and keep a copy"
                " elsewhere: without it nothing can be restored"
            ) from None

    def encrypt(self, name: str, data: bytes) -> bytes:
        """`data` for the object `name`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, name.encode())

    def decrypt(self, name: str, data: bytes) -> bytes:
        """The inverse. Raises ConfigurationError for another key or another object."""
        try:
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise ConfigurationError(f"{name} was encrypted with another key: give the one of this backup") from error


def wrap(name: str, content: bytes, key: Key | None) -> bytes:
    """The object that holds `content`."""
    body, flags = compression.compress(content), 0
    if key is not None:
        body, flags = key.encrypt(name, body), _ENCRYPTED
    return _HEADER.pack(_MAGIC, FORMAT, flags, google_crc32c.value(body)) + body


def unwrap(name: str, data: bytes, key: Key | None) -> bytes:
    """What an object holds. Raises MalformedError if it is damaged, ConfigurationError for a missing or wrong key or an
    object of a newer version."""
    if len(data) < _HEADER.size:
        raise MalformedError(f"{name} is damaged: it has {len(data)} bytes")
    magic, written_by, flags, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise MalformedError(f"{name} is no object of a backup")
    if written_by > FORMAT:
        raise ConfigurationError(f"{name} has format {written_by}, this version knows up to {FORMAT}: use a newer one")
    body = bytes(memoryview(data)[_HEADER.size :])
    if google_crc32c.value(body) != crc or flags & ~_ENCRYPTED:
        raise MalformedError(f"{name} is damaged: its CRC does not match")
    if flags & _ENCRYPTED:
        if key is None:
            raise ConfigurationError(f"{name} is encrypted: give the backup's key with --key-file")
        body = key.decrypt(name, body)
    try:
        return compression.decompress(body, CONTENT_BYTES_MAX)
    except zstandard.ZstdError as error:
        raise MalformedError(f"{name} is damaged: {error}") from error
