"""What a PostgreSQL server is configured with, and what it falls back to when it does not start with that.

The configuration file lies outside of the data directory and is made anew at each start. It includes the
`postgresql.conf` of the data directory, then has our defaults and the cluster's parameters; the server itself reads
`postgresql.auto.conf` (ALTER SYSTEM) after it.

Users can write what no server starts with. So there is a ladder (`Rung`): if the server ends by itself during its
start, the next rung leaves something out, down to our own settings alone. What it took to start is told as troubles,
and what was left out is kept beside:

    aurora.last-good.conf       postgresql.auto.conf at the last start that succeeded
    aurora.last-good-hba.conf   pg_hba.conf at that time
    aurora.refused.conf         a postgresql.auto.conf that was left out, with the reason in its first line
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.base import EngineTrouble
from aurora_ray.engine.tree_edit import Edit, read_text
from aurora_ray.troubles import TroubleCode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

AUTO: Final = "postgresql.auto.conf"
CONF: Final = "postgresql.conf"
HBA: Final = "pg_hba.conf"
GOOD_AUTO: Final = "aurora.last-good.conf"
GOOD_HBA: Final = "aurora.last-good-hba.conf"
REFUSED: Final = "aurora.refused.conf"
SIGNALS: Final = ("standby.signal", "recovery.signal")
OUR_CONF: Final = "postgresql.conf"
OUR_HBA: Final = "pg_hba.conf"
EMPTY_AUTO: Final = "# Written by ALTER SYSTEM.\n"
REASON_BYTES_MAX: Final = 400
_REASON_PREFIX: Final = "# Left out at the start of "
_LINE = re.compile(r"^\s*([A-Za-z_][\w.$]*)\s*=\s*'?(.*?)'?\s*$")

# Over TCP, a password. Over the Unix socket nothing is asked, since its directory admits only the engine's account and
# root. The file lies in the volume and is the user's.
PG_HBA: Final = """\
# TYPE  DATABASE     USER  ADDRESS  METHOD
local   all          all            trust
local   replication  all            trust
host    all          all   all      scram-sha-256
host    replication  all   all      scram-sha-256
"""


class Rung(StrEnum):
    """How much of what users set is in force, from all to nothing."""

    ALL = "all"
    LAST_GOOD = "last-good"  # ALTER SYSTEM's and pg_hba.conf as of the last start that succeeded
    DEFAULT_FILES = "default-files"  # none of ALTER SYSTEM's, no postgresql.conf, the last good pg_hba.conf
    OURS = "ours"  # not even the cluster's parameters, and the least size


@dataclass(frozen=True, slots=True)
class Files:
    """The user's configuration in a data directory; None: not there (or not readable)."""

    auto: str | None
    good_auto: str | None
    hba: str | None
    good_hba: str | None
    refused: str | None
    signals: tuple[str, ...]

    @classmethod
    def read(cls, data_dir: Path) -> Files:
        """As they are now."""
        return cls(
            auto=read_text(data_dir / AUTO),
            good_auto=read_text(data_dir / GOOD_AUTO),
            hba=read_text(data_dir / HBA),
            good_hba=read_text(data_dir / GOOD_HBA),
            refused=read_text(data_dir / REFUSED),
            signals=tuple(name for name in SIGNALS if (data_dir / name).exists()),
        )

    def rungs(self) -> tuple[Rung, ...]:
        """The ones that differ from each other."""
        last_good = (self.good_auto is not None and self.good_auto != self.auto) or self.replaces_hba(Rung.LAST_GOOD)
        return tuple(rung for rung in Rung if rung is not Rung.LAST_GOOD or last_good)

    def replaces_hba(self, rung: Rung) -> bool:
        """Whether another pg_hba.conf is used there than the user's present one."""
        if rung is Rung.LAST_GOOD:
            return self.good_hba is not None and self.good_hba != self.hba
        return rung is not Rung.ALL

    def auto_at(self, rung: Rung) -> str | None:
        """What postgresql.auto.conf shall hold there; None: as it is."""
        if rung is Rung.ALL:
            return None
        return self.good_auto if rung is Rung.LAST_GOOD and self.good_auto is not None else EMPTY_AUTO

    def fallback(self, rung: Rung, why: str) -> list[Edit]:
        """What to change in the data directory before a start on this rung."""
        content = self.auto_at(rung)
        if content is None or content == self.auto:
            return []
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        header = f"{_REASON_PREFIX}{when}: {' '.join(why.split())[:REASON_BYTES_MAX]}\n"
        return [Edit(REFUSED, header + (self.auto or "")), Edit(AUTO, content)]

    def back(self) -> list[Edit]:
        """Undoes `fallback`."""
        return [Edit(AUTO, self.auto if self.auto is not None else EMPTY_AUTO), Edit(REFUSED, self.refused)]

    def worked(self) -> list[Edit]:
        """What to note after a start with everything in force."""
        edits: list[Edit] = []
        if self.auto is not None and self.auto != self.good_auto:
            edits.append(Edit(GOOD_AUTO, self.auto))
            if self.refused is not None and self.good_auto is not None:  # the user has set something else since
                edits.append(Edit(REFUSED, None))
        if self.hba is not None and self.hba != self.good_hba:
            edits.append(Edit(GOOD_HBA, self.hba))
        return edits


def conf_text(
    data_dir: Path,
    rung: Rung,
    *,
    hba: Path | None,
    defaults: Mapping[str, str],
    parameters: Mapping[str, str],
) -> str:
    """The configuration file for a start on this rung. `hba`: to be used instead of the user's pg_hba.conf."""
    lines = ["# Made at each start of the server: use ALTER SYSTEM or `aurora parameters`, not this file."]
    if rung in (Rung.ALL, Rung.LAST_GOOD):
        lines.append(include_line(data_dir / CONF))
    lines += [f"{name} = {_quoted(value)}" for name, value in defaults.items()]
    if hba is not None:
        lines.append(f"hba_file = {_quoted(str(hba))}")
    if rung is not Rung.OURS:
        lines += [f"{name} = {_quoted(value)}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def include_line(users: Path) -> str:
    """How our configuration file takes in the user's."""
    return f"include_if_exists {_quoted(str(users))}"


def troubles_of(rung: Rung, files: Files, why: str, parameters: Mapping[str, str]) -> list[EngineTrouble]:
    """What of the user's is not in force after a start on `rung` (`files` as they were before it), and why."""
    found = []
    if rung is not Rung.ALL:
        left_out = sorted(_changed(files.auto or "", files.auto_at(rung) or ""))
        if rung is Rung.OURS:
            left_out += sorted(parameters)
        if rung is not Rung.LAST_GOOD:
            left_out.append("postgresql.conf")
        if files.replaces_hba(rung):
            left_out.append("pg_hba.conf")
        found.append(_left_out(", ".join(left_out[:8]) or AUTO, why))
    elif files.refused is not None and files.refused.startswith(_REASON_PREFIX):
        reason, _, content = files.refused.partition("\n")
        left_out = sorted(_changed(content, files.auto or ""))
        if left_out:
            found.append(_left_out(", ".join(left_out[:8]), reason.partition("Z: ")[2]))
    if files.signals:
        found.append(
            EngineTrouble(
                TroubleCode.READ_ONLY,
                f"{' and '.join(files.signals)} in the data directory makes the server a standby, which takes no "
                "writes: `aurora repair cluster NAME signals` removes it and starts the server anew",
            )
        )
    return found


def sessions_fail(why: str) -> EngineTrouble:
    """The server starts with the user's settings, and then no session does."""
    return EngineTrouble(
        TroubleCode.SESSIONS_FAIL,
        f"no session can begin with the settings of the user ({why}): take them back with `aurora parameters NAME "
        "reset SETTING`, or with `aurora repair cluster NAME settings` if ALTER SYSTEM set them",
    )


def _left_out(what: str, why: str) -> EngineTrouble:
    return EngineTrouble(
        TroubleCode.PARAMETER_LEFT_OUT,
        f"the server did not start with the settings of the user and runs without {what}: {why}",
    )


def settings_in(text: str) -> dict[str, str]:
    """Names and values of a file like postgresql.auto.conf; the last of a name counts."""
    matches = (_LINE.match(line) for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {match[1].lower(): match[2] for match in matches if match}


def without_settings(text: str, names: set[str]) -> str:
    """A file like postgresql.auto.conf without these settings."""

    def kept(line: str) -> bool:
        match = _LINE.match(line)
        return match is None or line.lstrip().startswith("#") or match[1].lower() not in names

    return "".join(line for line in text.splitlines(keepends=True) if kept(line))


def _changed(before: str, after: str) -> set[str]:
    """Settings of the first that the second has not, or otherwise."""
    now = settings_in(after)
    return {name for name, value in settings_in(before).items() if now.get(name) != value}


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"
