"""Rounds on a fleet with MariaDB, of the faults that differ most; `tests.chaos.fleet --engine mysql` does all."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.fleet import MYSQL, FleetChaos
from tests.support.leaks import remove_tree

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.mariadb,
    pytest.mark.timeout(900),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
FAULTS = (
    "kill_engine",
    "kill_reader_and_engine",
    "cut_writer_from_nodes",
    "ask_for_failover",
    "lose_zone",
    "power_cut",
)


@pytest.fixture
def chaos(run_dir: Path) -> Iterator[FleetChaos]:
    directory = run_dir / "mysql-rounds"
    directory.mkdir(mode=0o711)
    found = FleetChaos(directory, 7, pause=time.sleep, engine=MYSQL)  # not synchronisation: load runs meanwhile
    yield found
    found.close()
    remove_tree(directory)


def test_histories_are_right_whatever_is_lost(chaos: FleetChaos) -> None:
    chaos.prepare()
    for number, fault in enumerate(FAULTS, start=1):
        verdict = chaos.run_round(number, fault).verdict
        assert verdict.ok > 0
        assert verdict.snapshots > 0, "readers showed nothing"
    assert chaos.finish() > 0
