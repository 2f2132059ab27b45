"""Timelines of PostgreSQL's WAL. Pure.

A server that leaves recovery by promotion goes on in another timeline, at the end of the last whole record: the segment
with that place is copied up to there under the new timeline's number, and a *history* file tells which timelines lead
to the new one and where each was left. The numbers of a line of descent rise, and may have gaps.

A server may end after it has written a history file and before anything on the new timeline counts. Then nothing leads
to that timeline, and its number is never used again. So which timeline a volume is on its history files cannot say. The
control file does (`control_file`): it names the new one after the record with which that begins is written, and before
any session can write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST: Final = 1  # the one that has no history file
_LINE = re.compile(rb"^\s*(\d+)\s+([0-9A-Fa-f]+)/([0-9A-Fa-f]+)")
_FILE = re.compile(r"([0-9A-F]{8})\.history")


@dataclass(frozen=True, slots=True)
class Timelines:
    """The newest one, and where those that lead to it were left (timeline -> position in the WAL)."""

    newest: int
    ends: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, newest: int, history: bytes) -> Timelines:
        """Out of the newest one's history file; the first one's is empty."""
        lines = filter(None, map(_LINE.match, history.splitlines()))
        return cls(newest, {int(line[1]): int(line[2], 16) << 32 | int(line[3], 16) for line in lines})

    def __contains__(self, timeline: int) -> bool:
        return timeline == self.newest or timeline in self.ends

    def end_of(self, timeline: int) -> int | None:
        """Where it was left; None for the newest one."""
        return self.ends.get(timeline)

    def after(self, timeline: int) -> int:
        """The next one of the line; the newest itself, if there is none."""
        return min((each for each in self.ends if each > timeline), default=self.newest)

    def to_look_in(self, timeline: int) -> tuple[int, ...]:
        """The timelines whose segments may have WAL of this one, the likeliest first: its own; those before it; the
        next one, of which the first segment begins with a copy."""
        line = sorted({*self.ends, self.newest})
        before = [each for each in reversed(line) if each < timeline]
        return (timeline, *before, *(each for each in line if each > timeline))


def path_of_history(timeline: int) -> str:
    """Relative to the data directory."""
    return f"pg_wal/{timeline:08X}.history"


def timeline_of_history(name: str) -> int | None:
    """The timeline whose history file this is, by its name without directories; None for another file."""
    match = _FILE.fullmatch(name)
    return int(match[1], 16) if match is not None else None
