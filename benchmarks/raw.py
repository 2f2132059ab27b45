"""The file of raw figures that each suite writes: after every turn, whole or not at all; tables are made from it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import machine

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.systems.base import Site

OUT: Final = machine.ROOT / "benchmarks" / "out"


class Saved:
    """A dataclass that is written as JSON."""

    __slots__ = ()

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")  # type: ignore[call-overload]
        temporary.replace(path)


@dataclass(slots=True, kw_only=True)
class RawFigures(Saved):
    """What is known of any run beside its figures. `load_averages`: of the last minute, when each turn began."""

    started: str
    commit: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    load_averages: list[float] = field(default_factory=list)
    took_s: float = 0.0


def facts(site: Site) -> dict[str, Any]:
    """For a new RawFigures."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(site.work_dir),
        "versions": machine.versions(site.install.version),
    }


def file_of(suite: str, started: str) -> Path:
    """Where a run's figures go if nobody says otherwise."""
    return OUT / f"{suite}-{started.replace('-', '').replace(':', '')[:15]}.json"


def end_in_order() -> None:
    """From now on SIGTERM ends this process so that everything is cleaned up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Steps:
    """Says what begins, and saves what there is by then."""

    def __init__(self, result: RawFigures, path: Path, console: Console, began_s: float) -> None:
        """`began_s`: on the monotonic clock."""
        self._result, self._path, self._console, self._began_s = result, path, console, began_s

    def __call__(self, what: str) -> None:
        """What begins now."""
        result = self._result
        result.load_averages.append(round(os.getloadavg()[0], 2))
        result.took_s = round(time.monotonic() - self._began_s, 1)
        result.save(self._path)
        self._console.print(f"{result.took_s:6.0f} s  {what}", highlight=False)
