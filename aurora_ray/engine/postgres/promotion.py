"""An opening that ends its recovery by promotion, so that sessions need not wait for a checkpoint.

A server that recovers after a crash writes a checkpoint before it lets anybody in: every page that the replay has
changed, which after a minute of load takes longer than the replay. PostgreSQL leaves that out where a standby is
promoted: one record says that recovery has ended, and the checkpoint follows beside the sessions. So a server that
ended uncleanly is started as a standby that follows nobody, and is told at once that it is promoted. By PostgreSQL's
rules it replays all that is in pg_wal first, exactly as after a crash, and only then looks whether it was told.

What is different afterwards is the timeline (`timelines`). The first segment of the new one begins with a copy, which
goes through the volume, so this pays where a checkpoint would write more.

What makes a server a standby is two files that are not of the volume (`FILES`). Wherever such an opening is cut short,
the next one finds a directory like after any crash, and both ways of opening are right for it, see ARCHITECTURE.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import replace_file
from aurora_ray.engine.base import VolatileKind, VolatilePattern
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, Recovery
from aurora_ray.errors import MalformedError

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.process import EngineProcess

STANDBY: Final = "standby.signal"
PROMOTE: Final = "promote"
FILES: Final = tuple(VolatilePattern(VolatileKind.EXACT, name) for name in (STANDBY, PROMOTE))
# From the segment of the redo point to the newest one. A copy is one segment, of 4 MiB in most clusters, and a timeline
# more has its price for readers; a checkpoint writes what so much WAL has changed: with small transactions some 20,000
# pages.
WAL_BYTES_MIN: Final = 48 << 20
URGE_EVERY_S: Final = 0.05
_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_LABEL: Final = "backup_label"


def pays(data_dir: Path) -> bool:
    """Whether the next recovery on `data_dir`, where nothing runs, shall end by promotion.

    Only where the WAL alone says how far it goes: after a promotion and before the next checkpoint, the control file
    names the place of the former, a standby takes that for the end of what may be inconsistent, and would complain of
    files that were dropped later. And not with replication slots, as some versions let none be on such a standby.
    """
    try:
        recovery = Recovery.read((data_dir / os.fsdecode(CONTROL_PATH)).read_bytes())
        segments = [found for name in os.listdir(data_dir / "pg_wal") if (found := _SEGMENT.fullmatch(name))]
        slots = os.listdir(data_dir / "pg_replslot")
    except (OSError, MalformedError):
        return False
    if recovery.needless or not recovery.plain or slots or (data_dir / _LABEL).exists():
        return False
    of_4_gib = (1 << 32) // recovery.wal_segment_bytes
    numbers = [int(found[2], 16) * of_4_gib + int(found[3], 16) for found in segments]
    between = max(numbers, default=0) - recovery.redo // recovery.wal_segment_bytes
    return between * recovery.wal_segment_bytes >= WAL_BYTES_MIN


class Promotion:
    """Of one start."""

    def __init__(self, data_dir: Path, account: EngineAccount) -> None:
        self._data_dir, self._account = data_dir, account
        self._urged_s = float("-inf")

    def begin(self) -> None:
        """Before the server's start."""
        self._make(STANDBY)

    def urge(self, process: EngineProcess, now_s: float) -> None:
        """Tells a server that handles signals already. Again and again: it forgets what it was told too early."""
        if now_s - self._urged_s >= URGE_EVERY_S:
            self._urged_s = now_s
            self._make(PROMOTE)
            process.send(signal.SIGUSR1)

    def end(self) -> None:
        """When the server is there, or there is none."""
        for name in (STANDBY, PROMOTE):
            with contextlib.suppress(FileNotFoundError):
                (self._data_dir / name).unlink()

    def _make(self, name: str) -> None:
        path = self._data_dir / name
        if not path.exists():
            replace_file(path, "", durable=False)
            with contextlib.suppress(FileNotFoundError):  # the server may remove it at once
                self._account.own(path, 0o600)
