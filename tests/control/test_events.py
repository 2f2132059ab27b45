"""The log of events: bounded, readable after damage, one event for a trouble's beginning and one for its end."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_ray.control.report import events
from aurora_ray.control.report.events import EVENTS_MAX, EventKind, EventLog, read
from aurora_ray.troubles import Trouble, TroubleCode

FULL = Trouble(TroubleCode.DISK_FULL, "a-1", "the disk is full")


def test_events_are_read_by_name_and_the_newest_of_them(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.note(EventKind.FAILOVER, "demo-1", "its engine was killed", "demo")
    log.note(EventKind.CLUSTER, "orders", "orders was deleted", "orders")
    log.note(EventKind.REPLACEMENT, "a-1", "a-3 takes its place")
    assert [event["subject"] for event in read(tmp_path)] == ["demo-1", "orders", "a-1"]
    assert [event["sentence"] for event in read(tmp_path, "demo")] == ["its engine was killed"]
    assert [event["subject"] for event in read(tmp_path, limit=1)] == ["a-1"]
    assert stat.S_IMODE((tmp_path / events.FILE_NAME).stat().st_mode) == 0o600


def test_the_file_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENTS_MAX", 20)
    for log in (EventLog(tmp_path), EventLog(tmp_path)):  # the second counts what the first has left
        for number in range(25):
            log.note(EventKind.FLEET, "control", f"{number}")
        assert len((tmp_path / events.FILE_NAME).read_text().splitlines()) <= 20
    assert read(tmp_path)[-1]["sentence"] == "24"
    log.note(EventKind.FLEET, "control", "x" * 5000)
    assert len(read(tmp_path)[-1]["sentence"]) == events.SENTENCE_CHARS_MAX
    assert EVENTS_MAX >= 1000


@pytest.mark.allowed_logs(r"cannot be written")
def test_a_line_that_was_cut_is_left_out_and_a_directory_that_is_away_fails_nobody(tmp_path: Path) -> None:
    path = tmp_path / events.FILE_NAME
    path.write_text('{"at_s": 1, "kind": "fleet", "subj\n[]\n\xff\n')
    log = EventLog(tmp_path)
    log.note(EventKind.FLEET, "control", "after")
    assert [event["sentence"] for event in read(tmp_path)] == ["after"]
    EventLog(tmp_path / "away").note(EventKind.FLEET, "control", "unnoted")
    assert read(tmp_path / "away") == []


def test_a_trouble_begins_and_ends_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    fuller = replace(FULL, sentence="the disk is fuller")
    for troubles in ([], [FULL], [FULL], [fuller], [], []):
        log.compare(troubles)
    told = [json.loads(line) for line in (tmp_path / events.FILE_NAME).read_text().splitlines()]
    assert [(event["kind"], event["subject"]) for event in told] == [("trouble", "a-1"), ("trouble_over", "a-1")]
