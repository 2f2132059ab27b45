"""What it takes to start a server as a standby: its feed, and the file that says what it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.durable import replace_file
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, ControlFile
from aurora_ray.engine.postgres.settings import AT_LEAST_THE_WRITERS
from aurora_ray.engine.postgres.standby.feed import PostgresFeed
from aurora_ray.engine.postgres.timelines import timeline_of_history
from aurora_ray.engine.tree_edit import Edit
from aurora_ray.errors import EngineError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import ReadFile, StandbyFeed
    from aurora_ray.engine.postgres.standby.takeover import Takeover
    from aurora_ray.log.filetable import FileTable

SIGNAL: Final = "standby.signal"


class Mounted(NamedTuple):
    """A mount at `data_dir` of a volume as of `lsn`, its file table then, and how the volume is read."""

    data_dir: Path
    table: FileTable
    lsn: int
    read: ReadFile


def make_feed(
    run_dir: Path,
    account: EngineAccount,
    server: tuple[int, Mapping[str, str]],
    mounted: Mounted,
    takeover: Takeover,
) -> StandbyFeed:
    """See Engine.make_feed; `server`: its major version, and what it would have by itself. Raises EngineError."""
    major, settings = server
    data_dir, table, lsn, read = mounted
    control = control_of(data_dir)
    own = [int(settings[name]) if settings[name].isdigit() else 0 for name in AT_LEAST_THE_WRITERS]
    return PostgresFeed(
        run_dir, account, major=major, control=control, own=own, table=table, lsn=lsn, read=read, takeover=takeover
    )


def control_of(data_dir: Path) -> ControlFile:
    """What its control file says. Raises EngineError."""
    try:
        return ControlFile.read((data_dir / os.fsdecode(CONTROL_PATH)).read_bytes())
    except (OSError, MalformedError) as error:
        raise EngineError(f"the control file in {data_dir} cannot be read: {error}") from error


def mark(data_dir: Path, account: EngineAccount) -> list[Edit]:
    """From now on a server on this directory starts as a standby. Gives what has to be changed there before.

    It would look for the newest timeline by the history files that it has, and wait for ever on one that came to
    nothing. Without that one's file it begins where the control file says, and gets the next ones from its feed.
    """
    signal = data_dir / SIGNAL
    replace_file(signal, "", durable=False)  # made anew at each start
    account.own(signal, 0o600)
    newest = control_of(data_dir).timeline
    found = {path.name: timeline_of_history(path.name) for path in (data_dir / "pg_wal").glob("*.history")}
    return [
        Edit(f"pg_wal/{name}", None) for name, timeline in found.items() if timeline is not None and timeline > newest
    ]
