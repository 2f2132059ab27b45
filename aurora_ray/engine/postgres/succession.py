"""What a standby that goes on as the writer says of its files, see Succession and "Promotion in place" in
ARCHITECTURE.md.

A crash after that is recovered from the standby's last restartpoint, so its control file is the first that the volume
hears of, as that of a writer that crashed (its own names a place from which on a standby would take the data for
consistent, though pages are newer than that), and the WAL from there on has to be in the volume. All of the WAL is as
the volume has it: the standby has what was given out to it, whole records, and the volume perhaps the beginning of
another one."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.base import PagesOf, Succession
from aurora_ray.engine.postgres.configuration import AUTO, HBA
from aurora_ray.engine.postgres.control_file import CHECKPOINT_BYTES, CONTROL_PATH, Recovery, as_crashed
from aurora_ray.engine.postgres.image import PAGE_BYTES
from aurora_ray.errors import EngineError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from aurora_ray.log.filetable import FileTable

OF_VOLUME: Final = ("pg_wal/*", AUTO, HBA, "postgresql.conf", "pg_ident.conf")
# What replay removes, or a standby at its start. Whatever else is in the volume somebody has put there since.
REMOVES: Final = (
    *(f"{name}/*" for name in ("base", "global", "pg_tblspc", "pg_xact", "pg_multixact", "pg_commit_ts")),
    *(f"{name}/*" for name in ("pg_twophase", "pg_logical", "pg_stat")),
    *("*/PG_[0-9]*_[0-9]*", "*/PG_[0-9]*_[0-9]*/*"),  # of tablespaces, wherever they lie
)
# Switched off on a standby's command line, where nothing changes them while it runs.
NOT_OF_A_STANDBY: Final = ("archive_mode", "summarize_wal", "sync_replication_slots")
_OFF: Final = ("off", "false", "no", "0")
_SEGMENT: Final = re.compile(rb"pg_wal/([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")


def switched_on(settings: Iterable[tuple[str, str]]) -> list[str]:
    """Which of NOT_OF_A_STANDBY the configuration files switch on; `settings`: what they say, the last counts."""
    said = dict(settings)
    return [name for name in NOT_OF_A_STANDBY if said.get(name, "off").strip().lower() not in _OFF]


def succession(data_dir: Path, table: FileTable, given: int = 0) -> Succession:
    """See Engine; `given`: where the WAL ends. Raises EngineError."""
    try:
        control = (data_dir / os.fsdecode(CONTROL_PATH)).read_bytes()
        recovery, page = Recovery.read(control), as_crashed(control)
    except (OSError, MalformedError) as error:
        raise EngineError(f"the control file in {data_dir} cannot be read: {error}") from error
    if not Recovery.read(page).plain:
        raise EngineError("a base backup decides up to where the volume would be recovered")
    of_4_gib = (1 << 32) // recovery.wal_segment_bytes
    segments = set()
    for entry in table.entries():
        for path in entry.paths:
            if path.startswith(b"pg_replslot/"):
                raise EngineError("there are replication slots, of which a standby knows nothing")
            if path in {b"backup_label", b"tablespace_map"}:
                raise EngineError("a base backup decides from where the volume would be recovered")
            if (found := _SEGMENT.fullmatch(path)) is not None:
                timeline, high, low = (int(part, 16) for part in found.groups())
                segments.add((timeline, high * of_4_gib + low))
    if recovery.newest != recovery.timeline or max(segments, default=(0, 0))[0] != recovery.timeline:
        raise EngineError("its last restartpoint is on another timeline than the writer was")
    numbers = {number for timeline, number in segments if timeline == recovery.timeline}
    first = recovery.redo // recovery.wal_segment_bytes
    if not numbers or not numbers.issuperset(range(first, max(numbers) + 1)):
        raise EngineError("the volume has no longer all WAL from its last restartpoint on")
    reads, same = _newest(recovery, given)
    return Succession(CONTROL_PATH, *CHECKPOINT_BYTES, page, OF_VOLUME, REMOVES, recovery.redo, reads, same)


def _newest(recovery: Recovery, given: int) -> tuple[tuple[PagesOf, ...], tuple[tuple[bytes, int], ...]]:
    """What a promotion reads, and what of it is here. The segment in which the WAL ends is read at its end and copied
    to the new timeline, and its history goes on. A standby has written it from its start on, byte by byte as it was
    given out, up to the page with the end, in which the volume perhaps has more."""
    number, end = divmod(given, recovery.wal_segment_bytes)
    of_4_gib = (1 << 32) // recovery.wal_segment_bytes
    name = f"{recovery.timeline:08X}{number // of_4_gib:08X}{number % of_4_gib:08X}"
    history = PagesOf(f"pg_wal/{recovery.timeline:08X}.history".encode(), 0, 1)
    if not end:
        return (history,), ()
    path, whole = f"pg_wal/{name}".encode(), end // PAGE_BYTES
    parts = (PagesOf(path, whole, 1), history, PagesOf(path, 0, whole))
    return parts, ((path, whole),)
