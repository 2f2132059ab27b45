"""How many clients an engine has, by what its processes call themselves: asking it would take a session itself."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# "postgres: USER DATABASE HOST(PORT) what it does", or [local]; with cluster_name, that comes before the user. No
# process of the server's own has an address, but for those that send WAL.
_IDLE: Final = b") idle", b"] idle"
_CLIENT: Final = re.compile(rb"postgres: (?!(\S+: )?walsender ).+ (\[local\]|\S+\(\d+\))( |$)")


def count_sessions(pids: Iterable[int]) -> int:
    """How many of these processes serve a client; those that are gone serve none."""
    return sum(_CLIENT.match(_title(pid)) is not None for pid in pids)


def count_busy(pids: Iterable[int]) -> int:
    """How many of them serve a client that is in the middle of something."""
    titles = (_title(pid) for pid in pids)
    return sum(_CLIENT.match(title) is not None and not title.rstrip().endswith(_IDLE) for title in titles)


def count_slots(data_dir: Path) -> int:
    """Replication slots of a data directory: each is a directory there, with another name while it is made."""
    try:
        return sum(not entry.name.endswith(".tmp") for entry in os.scandir(data_dir / "pg_replslot"))
    except OSError:
        return 0


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    except OSError:
        return b""
