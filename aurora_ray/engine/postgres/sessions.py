"""How many clients an engine has, by what its processes call themselves: asking it would take a session itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# "postgres: USER DATABASE HOST(PORT) what it does", or [local]; with cluster_name, that comes before the user. No
# process of the server's own has an address, but for those that send WAL.
_CLIENT: Final = re.compile(rb"postgres: (?!(\S+: )?walsender ).+ (\[local\]|\S+\(\d+\))( |$)")


def count_sessions(pids: Iterable[int]) -> int:
    """How many of these processes serve a client; those that are gone serve none."""
    return sum(_CLIENT.match(_title(pid)) is not None for pid in pids)


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    except OSError:
        return b""
