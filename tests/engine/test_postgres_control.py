import struct

import google_crc32c
import pytest

from aurora_ray.engine.postgres.control_file import ClusterIdentity, identity_patches, system_identifier
from aurora_ray.errors import MalformedError

NONCE = bytes(range(100, 132))
IDENTITY = ClusterIdentity(0x1122334455667788, b"n" * 32)


def control_file(body_bytes: int = 300) -> bytes:
    body = bytearray(struct.pack("<QII", 42, 1800, 202506291)).ljust(body_bytes, b"\1")
    body[200 : 200 + len(NONCE)] = NONCE
    return (bytes(body) + struct.pack("<I", google_crc32c.value(bytes(body)))).ljust(8192, b"\0")


def wal_head(identifier: int = 42, info: int = 2) -> bytes:
    return struct.pack("<HHIQIIQ", 0xD118, info, 1, 1 << 24, 0, 0, identifier)


@pytest.mark.parametrize("body_bytes", [284, 288, 300])  # versions differ in length
def test_a_cluster_gets_its_own_identity(body_bytes: int) -> None:
    control = control_file(body_bytes)
    patches = identity_patches(control, NONCE, {b"pg_wal/1": wal_head()}, IDENTITY)
    changed = patches[0].data.ljust(8192, b"\0")
    assert system_identifier(changed) == IDENTITY.system_identifier  # so the CRC is right as well
    assert changed[200:232] == IDENTITY.nonce
    assert (changed[8:200], changed[232:body_bytes]) == (control[8:200], control[232:body_bytes])
    assert (patches[1].path, patches[1].offset) == (b"pg_wal/1", 24)
    assert patches[1].data == changed[:8]


def test_identities_tell_their_time_and_differ() -> None:
    one, two = ClusterIdentity.new(1_700_000_000.5), ClusterIdentity.new(1_700_000_000.5)
    assert one.system_identifier >> 32 == 1_700_000_000
    assert one != two
    assert one.nonce != two.nonce


def test_what_does_not_fit_is_refused() -> None:
    damaged = bytearray(control_file())
    damaged[50] ^= 1
    with pytest.raises(MalformedError, match="CRC"):
        system_identifier(bytes(damaged))
    with pytest.raises(MalformedError, match="CRC"):
        system_identifier(b"")
    with pytest.raises(MalformedError, match="nonce"):
        identity_patches(control_file(), b"?" * 32, {}, IDENTITY)
    for head in (wal_head(identifier=43), wal_head(info=0), b""):
        with pytest.raises(MalformedError, match="not a WAL segment"):
            identity_patches(control_file(), NONCE, {b"pg_wal/1": head}, IDENTITY)
