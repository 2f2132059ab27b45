"""PostgreSQL's control file and the identity of a cluster.

A prepared data directory is shared by all clusters of a version; what must differ is what tells clusters apart:

- the system identifier: u64 at offset 0 of `global/pg_control`, and in the header of each WAL segment's first page
  (XLogLongPageHeaderData: u16 magic, u16 info, u32 timeline, u64 address, u32 rem_len, padding, then u64 identifier at
  offset 24; these headers have no checksum);
- the nonce that makes up a salt for roles that do not exist: 32 bytes in `global/pg_control`.

ControlFileData ends with the CRC-32C of all that precedes it. Its length differs between versions, so the place of the
CRC is found as the one where it fits, and that of the nonce from what pg_controldata prints.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import google_crc32c

from aurora_ray.engine.image import Patch
from aurora_ray.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTROL_PATH: Final = b"global/pg_control"
NONCE_BYTES: Final = 32
CONTROL_BYTES_MAX: Final = 512  # PG_CONTROL_MAX_SAFE_SIZE: ControlFileData never exceeds a disk sector
WAL_IDENTIFIER_OFFSET: Final = 24
WAL_LONG_HEADER: Final = 0x0002  # XLP_LONG_HEADER in the page header's info
_PARAMETERS = struct.Struct("<5i")
_PARAMETERS_OFFSET: Final = 180
_CONSTANTS = struct.Struct("<d4I")
_CONSTANTS_OFFSET: Final = 208
_FLOAT_FORMAT: Final = 1234567.0
_STATE_OFFSET: Final = 16
_IN_PRODUCTION: Final = 6  # DB_IN_PRODUCTION
CHECKPOINT_BYTES: Final = (32, 56)  # where the last checkpoint is, from where it has a recovery begin, and its timeline
_SHUT_DOWN: Final = (1, 2)  # DB_SHUTDOWNED, and the same of a standby
_REDO = struct.Struct("<QI")  # of the last checkpoint: where replay begins, and on which timeline
_REDO_OFFSET: Final = 40
_LEAST = struct.Struct("<QIxxxxQQ?xxxi")  # up to where replay must come, on which timeline; of a backup; wal_level
_LEAST_OFFSET: Final = 136
_WAL_LEVEL_REPLICA: Final = 1
_PAGE_BYTES: Final = 8192
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ClusterIdentity:
    """What tells one cluster from another made from the same prepared directory."""

    system_identifier: int
    nonce: bytes

    @classmethod
    def new(cls, now_s: float) -> ClusterIdentity:
        """As initdb would: seconds since 1970 in the upper half, so that it tells when; the rest random."""
        return cls((int(now_s) & 0xFFFFFFFF) << 32 | secrets.randbits(32), secrets.token_bytes(NONCE_BYTES))


@dataclass(frozen=True, slots=True)
class ControlFile:
    """What a standby must know of its writer's control file.

    `parameters`: max_connections, max_worker_processes, max_wal_senders, max_prepared_transactions and
    max_locks_per_transaction that the writer runs with. The places are the same from 13 to 18, and are checked by the
    two constants behind them: floatFormat, and the size of a page.
    """

    system_identifier: int
    parameters: tuple[int, int, int, int, int]
    wal_segment_bytes: int
    timeline: int  # the one that its server writes, or wrote last

    @classmethod
    def read(cls, control: bytes) -> ControlFile:
        """Raises MalformedError if it is damaged, or of a version with other places."""
        identifier = system_identifier(control)
        parameters = _PARAMETERS.unpack_from(control, _PARAMETERS_OFFSET)
        float_format, page_bytes, _, _, segment_bytes = _CONSTANTS.unpack_from(control, _CONSTANTS_OFFSET)
        if (float_format, page_bytes) != (_FLOAT_FORMAT, _PAGE_BYTES):
            raise MalformedError("the control file is of a version of PostgreSQL whose layout is not known")
        return cls(identifier, parameters, segment_bytes, _timelines(control)[1])


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a server's next recovery begins with, by its control file: `redo` is a position in the WAL. `needless`: the
    server ended in order. The places are the same from 13 to 18.

    `plain`: nothing tells but the WAL itself how far it has to be replayed, and it has all that an archive's would. Not
    so after a promotion until the next checkpoint, nor of a base backup.
    """

    redo: int
    timeline: int
    newest: int  # the timeline that the server wrote last
    wal_segment_bytes: int
    needless: bool
    plain: bool

    @classmethod
    def read(cls, control: bytes) -> Recovery:
        """Raises MalformedError as ControlFile.read."""
        segment_bytes = ControlFile.read(control).wal_segment_bytes
        (redo, _), (timeline, newest) = _REDO.unpack_from(control, _REDO_OFFSET), _timelines(control)
        least, _, backup_start, backup_end, backup_required, wal_level = _LEAST.unpack_from(control, _LEAST_OFFSET)
        plain = not (least or backup_start or backup_end or backup_required) and wal_level >= _WAL_LEVEL_REPLICA
        needless = _U32.unpack_from(control, _STATE_OFFSET)[0] in _SHUT_DOWN
        return cls(redo, timeline, newest, segment_bytes, needless, plain)


def in_production(control: bytes) -> bool:
    """Whether its server takes writes, or did so until it ended."""
    return bool(_U32.unpack_from(control, _STATE_OFFSET)[0] == _IN_PRODUCTION)


def as_crashed(control: bytes) -> bytes:
    """A standby's control file as that of a writer which ended uncleanly after the same checkpoint: nothing but the WAL
    says how far it has to be replayed. Raises MalformedError."""
    crc_offset = _crc_offset(control)
    changed = bytearray(control)
    _U32.pack_into(changed, _STATE_OFFSET, _IN_PRODUCTION)
    _U64.pack_into(changed, _LEAST_OFFSET, 0)
    _U32.pack_into(changed, _LEAST_OFFSET + _U64.size, 0)
    _U32.pack_into(changed, crc_offset, google_crc32c.value(bytes(changed[:crc_offset])))
    return bytes(changed)


def _timelines(control: bytes) -> tuple[int, int]:
    """That of the last checkpoint, and the newest one: until the first checkpoint on a new timeline the second says
    that it counts (timelines)."""
    timeline: int = _REDO.unpack_from(control, _REDO_OFFSET)[1]
    least: int = _LEAST.unpack_from(control, _LEAST_OFFSET)[1]
    return timeline, max(timeline, least)


def system_identifier(control: bytes) -> int:
    """The one in the control file. Raises MalformedError if its CRC is wrong."""
    _crc_offset(control)
    identifier: int = _U64.unpack_from(control)[0]
    return identifier


def identity_patches(
    control: bytes, nonce: bytes, wal_heads: Mapping[bytes, bytes], identity: ClusterIdentity
) -> list[Patch]:
    """What to change in a prepared directory so that it becomes the cluster `identity`.

    `control` is the control file, `nonce` the one it holds, `wal_heads` the first bytes of each WAL segment by path.
    Raises MalformedError if any of them is not what it should be.
    """
    crc_offset = _crc_offset(control)
    nonce_offset = control.find(nonce, 0, crc_offset)
    if len(nonce) != NONCE_BYTES or nonce_offset < 0:
        raise MalformedError("the nonce that pg_controldata prints is not in the control file")
    old_identifier = control[: _U64.size]
    new_identifier = _U64.pack(identity.system_identifier)
    changed = bytearray(control[:crc_offset])
    changed[: _U64.size] = new_identifier
    changed[nonce_offset : nonce_offset + NONCE_BYTES] = identity.nonce
    changed += _U32.pack(google_crc32c.value(bytes(changed)))
    patches = [Patch(CONTROL_PATH, 0, bytes(changed))]
    for path, head in wal_heads.items():
        info = int.from_bytes(head[2:4], "little")
        found = head[WAL_IDENTIFIER_OFFSET : WAL_IDENTIFIER_OFFSET + _U64.size]
        if not info & WAL_LONG_HEADER or found != old_identifier:
            raise MalformedError(f"{path.decode()} is not a WAL segment of this cluster")
        patches.append(Patch(path, WAL_IDENTIFIER_OFFSET, new_identifier))
    return patches


def _crc_offset(control: bytes) -> int:
    """Where the CRC lies: at the one 4-byte boundary where it fits. Raises MalformedError if it fits nowhere."""
    for offset in range(_U64.size, min(CONTROL_BYTES_MAX, len(control) - _U32.size + 1), _U32.size):
        if _U32.unpack_from(control, offset)[0] == google_crc32c.value(control[:offset]):
            return offset
    raise MalformedError("the control file is damaged: its CRC fits nowhere")
