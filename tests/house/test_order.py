"""How the files of a run are packed: the longest first, never too many fleets side by side."""

import itertools

import pytest

from tests.house.source import ROOT
from tests.support import order
from tests.support.order import FLEETS_MAX, File, length_s, packed, recorded_s


def _files(*seconds: float, fleet: bool = False) -> list[File]:
    return [File(f"{'f' if fleet else 'e'}{number}", took_s, fleet) for number, took_s in enumerate(seconds)]


def test_the_longest_begins_first() -> None:
    files = _files(1, 1, 1, 1, 6, 2)
    assert [file.seconds for file in packed(files, 2)][:2] == [6, 2]
    assert length_s(packed(files, 2), 2) == 6
    assert length_s(files, 2) == 8, "as they stand, a worker ends with the long one"


def test_no_more_fleets_side_by_side_than_the_machine_carries() -> None:
    fleets, others = _files(*[10] * 6, fleet=True), _files(*[5] * 18)
    files = packed(fleets + others, 4)
    free, running = [0.0] * 4, []
    for file in files:
        begin = min(free)
        free[free.index(begin)] = begin + file.seconds
        running.append((begin, begin + file.seconds, file.fleet))
    for begin, _, fleet in running:
        beside = [one for one in running if one[2] and one[0] <= begin < one[1]]
        assert not fleet or len(beside) <= FLEETS_MAX
    assert {*files} == {*fleets, *others}
    assert length_s(files, 4) <= 1.25 * sum(file.seconds for file in files) / 4


def test_with_fleets_only_no_worker_is_idle() -> None:
    assert length_s(packed(_files(*[10] * 8, fleet=True), 4), 4) == 20


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_file_is_handed_out_once(workers: int) -> None:
    files = _files(3, 1, 2, 5, 1) + _files(4, 4, 9, fleet=True)
    assert sorted(packed(files, workers)) == sorted(files)
    for one, other in itertools.pairwise([packed(files, workers), packed(reversed(files), workers)]):
        assert one == other, "the same for all workers, however their files are found"


def test_recorded_durations_are_read_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "RECORDED", tmp_path / "durations.json")
    order.record({"tests/a.py": 12.34, "tests/short.py": 0.2})
    assert recorded_s() == {"tests/a.py": 12.3}
    here = "tests/house/test_order.py"
    order.record({here: 2.0})
    assert recorded_s() == {here: 2.0}, "of a file that is gone nothing is kept"
    order.record({"tests/a.py": 12.34})
    assert recorded_s() == {"tests/a.py": 12.3, here: 2.0}, "what did not run stays as it was"


def test_recorded_durations_are_of_files_that_are_there() -> None:
    gone = [path for path in recorded_s() if not (ROOT / path).is_file()]
    assert not gone, "record them again: make test ARGS=--record-durations"
