"""What a cluster has used, for people: now, and since a moment, from a bounded file of totals in the data directory.

`<data_dir>/usage.jsonl`: a JSON object a line, the oldest first: {"at_s": Unix time, "cluster", and the totals since
`since_s` as in decide/metering.py}. The totals that count are in the control volume; without this file only what lay
in between is not known. When it has LINES_MAX lines it is written anew with the newer half.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.control.decide.metering import Totals
from aurora_ray.durable import replace_file
from aurora_ray.errors import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aurora_ray.control.decide.metering import Meter
    from aurora_ray.control.model.state import DBCluster, Fleet

FILE_NAME: Final = "usage.jsonl"
LINES_MAX: Final = 20_000
LINE_EVERY_S: Final = 60.0

_log = logging.getLogger(__name__)


class UsageLog:
    """Appends totals. Nothing fails because they cannot be noted."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._lines: int | None = None
        self._noted: dict[str, tuple[float, Totals]] = {}

    def note(self, fleet: Fleet, meter: Meter, now_s: float) -> None:
        """Of each cluster, if that is news and the last line is old enough."""
        lines = []
        for cluster in fleet.clusters:
            totals = meter.totals(cluster.name)
            at_s, before = self._noted.get(cluster.name, (0.0, None))
            if totals is None or totals == before or now_s - at_s < LINE_EVERY_S:
                continue
            self._noted[cluster.name] = now_s, totals
            lines.append(json.dumps({"at_s": now_s, "cluster": cluster.name, **asdict(totals)}))
        try:
            self._append(lines)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error)

    def _append(self, lines: list[str]) -> None:
        if not lines:
            return
        if self._lines is None:
            self._lines = sum(1 for _ in _lines(self._path))
        if self._lines + len(lines) > LINES_MAX:
            kept = list(_lines(self._path))[-LINES_MAX // 2 :]
            replace_file(self._path, "".join(each + "\n" for each in kept), durable=False)
            self._lines = len(kept)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, "".join(each + "\n" for each in lines).encode())
        finally:
            os.close(descriptor)
        self._lines += len(lines)

    def before(self, cluster: str, since_s: float, at_s: float) -> tuple[float, Totals] | None:
        """The last totals not after `at_s`, of those that count since `since_s`, and when that was."""
        found = None
        for line in _lines(self._path):
            try:
                plain = json.loads(line)
                if plain.pop("cluster") != cluster or plain["since_s"] != since_s or plain["at_s"] > at_s:
                    continue
                found = float(plain.pop("at_s")), Totals(**plain)
            except UNDECODABLE:  # a line that was cut
                continue
        return found


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line.rstrip("\n") for line in file)
    except FileNotFoundError:
        return


def report_usage(
    cluster: DBCluster, meter: Meter, log: UsageLog, since_s: float | None, now_s: float
) -> dict[str, Any]:
    """What was used up to now: from its beginning, or from the last noted totals not after `since_s` (Unix times)."""
    totals = meter.totals(cluster.name) or Totals(now_s)
    found = log.before(cluster.name, totals.since_s, since_s) if since_s is not None else None
    at_s, before = found or (totals.since_s, Totals(totals.since_s))
    pages, page_bytes = totals.pages - before.pages, cluster.volume.page_size
    byte_s = totals.byte_s - before.byte_s
    return {
        "cluster": cluster.name,
        "from": at_s,
        "until": now_s,
        "acu_seconds": round(totals.acu_s - before.acu_s, 3),
        "acu_hours": round((totals.acu_s - before.acu_s) / 3600, 6),
        "io": {
            "read_pages": pages,
            "read_bytes": pages * page_bytes,
            "redo_bytes": totals.redo_bytes - before.redo_bytes,
        },
        "storage": {"bytes": meter.used_bytes(cluster.name), "byte_hours": round(byte_s / 3600, 3)},
    }
