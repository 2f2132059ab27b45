"""What a rewind may take back, and nothing else: histories with one, right and wrong."""

import json

from tests.histories.check import check
from tests.histories.model import Append, History, Outcome, ReadList, Txn
from tests.histories.rewinds import Rewind, of_lines, still_seen, taken_back
from tests.histories.snapshots import Snapshot

REWIND = Rewind(mark_began_ns=100, mark_ended_ns=110, began_ns=200, ended_ns=300)


def append(id_: int, began_ns: int, ended_ns: int) -> Txn:
    return Txn(id_, f"client {id_}", Outcome.OK, (Append("x", id_),), began_ns, ended_ns)


BEFORE = append(1, 10, 20)
AT_THE_MARK = append(2, 90, 105)
AFTER = append(3, 120, 130)
MEANWHILE = append(4, 195, 250)
LATER = append(5, 310, 320)


def verdict(*seen: int) -> list[str]:
    """Of a history whose last look sees these."""
    look = Txn(9, "look", Outcome.OK, (ReadList("x", seen),), 400, 410)
    history = History([BEFORE, AT_THE_MARK, AFTER, MEANWHILE, LATER, look], {})
    return [str(anomaly) for anomaly in check(taken_back(history, [REWIND]))]


def test_what_was_acknowledged_between_mark_and_rewind_goes_and_all_else_stays() -> None:
    assert not verdict(1, 5)
    assert not verdict(1, 2, 5)
    assert not verdict(1, 4, 5)
    assert not verdict(1, 2, 4, 5)
    assert verdict(1, 3, 5), "what was taken back is there"
    assert verdict(5), "what was there before the mark is gone"
    assert verdict(1), "what came after the rewind is gone"


def test_without_a_rewind_nothing_may_go() -> None:
    look = Txn(9, "look", Outcome.OK, (ReadList("x", (1,)),), 400, 410)
    assert check(taken_back(History([BEFORE, AFTER, look], {}), []))


def test_a_file_tells_of_its_rewinds() -> None:
    lines = [
        {"type": "begin", "txn": 3, "client": "c", "time_ns": 120, "ops": [["append", "x", 3, 0]]},
        {"type": "ok", "txn": 3, "time_ns": 130, "ops": []},
        {"type": "rewind", "time_ns": 300, "mark": [100, 110], "rewind": [200, 300]},
    ]
    (found,) = of_lines(list(map(json.dumps, lines))).txns
    assert found.outcome is Outcome.FAIL


def test_snapshots_of_what_was_taken_back_are_not_judged() -> None:
    taken = [Snapshot("s", at_ns, {}) for at_ns in (50, 150, 250, 300 + 2_000_000_000)]
    assert [each.ended_ns for each in still_seen(taken, [REWIND])] == [50, 2_000_000_300]
