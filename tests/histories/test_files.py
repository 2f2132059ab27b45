"""Histories as files, and the command that judges them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.histories.check import Unknown, settle
from tests.histories.model import (
    Append,
    MalformedHistoryError,
    Outcome,
    Read,
    ReadList,
    Txn,
    Write,
    from_lines,
    op_from_json,
    op_to_json,
)
from tests.histories.script import history

LOST = [
    {"type": "run", "seed": 1, "accounts": {"a": 100}},
    {"type": "begin", "txn": 1, "client": "c", "time_ns": 1, "ops": [["append", "x", 5, 0]]},
    {"type": "fault", "name": "kill_engine", "time_ns": 2},
    {"type": "ok", "txn": 1, "time_ns": 3, "ops": []},
    {"type": "begin", "txn": 2, "client": "c", "time_ns": 4, "ops": [["list", "x"]]},
    {"type": "ok", "txn": 2, "time_ns": 5, "ops": [["list", "x", [], None]]},
    {"type": "begin", "txn": 3, "client": "c", "time_ns": 6, "ops": [["append", "x", 6, 0], ["list", "x"]]},
]


def test_beginnings_and_ends_are_paired() -> None:
    found = from_lines(json.dumps(event) for event in LOST)
    assert found.accounts == {"a": 100}
    assert found.txns == [
        Txn(1, "c", Outcome.OK, (Append("x", 5),), 1, 3),
        Txn(2, "c", Outcome.OK, (ReadList("x", ()),), 4, 5),
        Txn(3, "c", Outcome.INFO, (Append("x", 6), ReadList("x")), 6, None, "its end was not recorded"),
    ]


@pytest.mark.parametrize(
    "op",
    [Append("x", 1, -5), ReadList("x"), ReadList("x", (1, 2), 7), Write("r", 1), Read("r", None), Read("r", 4),
     Read("r", None, answered=False)],
)  # fmt: skip
def test_operations_survive_the_file(op: Append | ReadList | Write | Read) -> None:
    assert op_from_json(json.loads(json.dumps(op_to_json(op)))) == op


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["{"], "line 1 is no JSON"),
        (["[]"], "line 1 is no event"),
        ([json.dumps(LOST[3])], "never began"),
        ([json.dumps(LOST[1])] * 2, "two events of type begin"),
        ([json.dumps({**LOST[1], "ops": [["jump", "x"]]})], "not an operation"),
    ],
)
def test_what_is_no_history_is_refused(lines: list[str], complaint: str) -> None:
    with pytest.raises(MalformedHistoryError, match=complaint):
        from_lines(lines)


@pytest.mark.parametrize(("events", "code", "words"), [(LOST, 1, "lost append: T1"), (LOST[:4], 0, "0 anomalies")])
def test_the_command(tmp_path: Path, events: list[dict[str, object]], code: int, words: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    command = [sys.executable, "-m", "tests.histories", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")
    assert words in done.stdout


def test_unknown_outcomes_are_settled_by_a_later_read() -> None:
    text = "1 0- info x+1\n2 1- info x+2\n3 2- info y+3\n4 3- info x[]\n5 4- info r:=5\n6 4- info r:=6\n"
    text += "7 20-30 ok x[1]\n8 20-30 ok r?5"
    assert settle(history(text)) == Unknown(happened=2, absent=1, open=3)
