"""What happened, for people: a bounded file of events in the data directory of the control plane's machine.

`<data_dir>/events.jsonl`: a JSON object a line, the oldest first: {"at_s": Unix time, "kind": see EventKind, "subject":
a cluster, an instance, a storage node or "control", "cluster": its cluster or null, "sentence": what and why}. When it
has EVENTS_MAX lines it is written anew with the newer half. It is told from the file, so also of a stopped fleet.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from aurora_ray.durable import replace_file
from aurora_ray.errors import UNDECODABLE
from aurora_ray.troubles import Trouble, TroubleCode

FILE_NAME: Final = "events.jsonl"
EVENTS_MAX: Final = 2000
SENTENCE_CHARS_MAX: Final = 1000

_log = logging.getLogger(__name__)


class EventKind(StrEnum):
    """What kind of event it is. Add a word for a new kind; never change what one means."""

    FLEET = "fleet"  # the control plane opened its state, or the fleet is stopped
    CLUSTER = "cluster"  # declared, available, deleted, restored, given up
    FAILOVER = "failover"
    READER = "reader"  # added, available, ended, removed
    CAPACITY = "capacity"  # of an instance that is serverless; its cluster was paused or resumed
    REGION = "region"  # of a global cluster: added, promoted, follows, left
    REPLACEMENT = "replacement"  # of a storage node
    STATE = "state"  # the control state fell back, or was repaired
    TROUBLE = "trouble"  # something is not as it shall be
    TROUBLE_OVER = "trouble_over"


@dataclass(frozen=True, slots=True)
class Event:
    """See the module's text."""

    at_s: float
    kind: EventKind
    subject: str
    sentence: str
    cluster: str | None = None

    def report(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "kind": str(self.kind)}


class EventLog:
    """Appends events. Nothing fails because an event cannot be noted: it is logged in any case."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._lines = 0
        self._counted = False
        self._troubles: dict[tuple[TroubleCode, str], Trouble] = {}

    def note(self, kind: EventKind, subject: str, sentence: str, cluster: str | None = None) -> None:
        """It happened now."""
        event = Event(time.time(), kind, subject, sentence[:SENTENCE_CHARS_MAX], cluster)
        _log.info("event %s of %s: %s", kind, subject, event.sentence)
        try:
            self._append(json.dumps(event.report()))
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error)

    def compare(self, troubles: Iterable[Trouble]) -> None:
        """What is not as it shall be now: what begins of it, or is over, is an event; other words for it are none."""
        now = {(trouble.code, trouble.subject): trouble for trouble in sorted(troubles)}
        before, self._troubles = self._troubles, now
        for place in sorted(now.keys() - before.keys()):
            self.note(EventKind.TROUBLE, now[place].subject, now[place].sentence)
        for place in sorted(before.keys() - now.keys()):
            self.note(EventKind.TROUBLE_OVER, before[place].subject, f"over: {before[place].sentence}")

    def _append(self, line: str) -> None:
        if not self._counted:
            self._lines, self._counted = len(_lines(self._path)), True
        if self._lines >= EVENTS_MAX:
            kept = _lines(self._path)[-EVENTS_MAX // 2 :]
            replace_file(self._path, "".join(each + "\n" for each in kept), durable=False)
            self._lines = len(kept)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, (line + "\n").encode())
        finally:
            os.close(descriptor)
        self._lines += 1


def read(data_dir: Path, name: str | None = None, limit: int = EVENTS_MAX) -> list[dict[str, Any]]:
    """The newest `limit` events, the oldest first; with a name, those of that cluster, instance or node only.

    Lines that are cut (a power cut, a full disk) are left out.
    """
    found: deque[dict[str, Any]] = deque(maxlen=limit)
    for line in _lines(data_dir / FILE_NAME):
        try:
            event = json.loads(line)
            about = (event["subject"], event["cluster"], str(event["subject"]).rpartition("-")[0])
        except UNDECODABLE:
            continue
        if name is None or name in about:
            found.append(event)
    return list(found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
