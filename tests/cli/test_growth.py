# ruff: noqa: S608 - all names in the statements are made here
"""Clusters of both engines that outgrow protection groups: at their start, under load, and when they recover."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fleet import CliFleet, fleet_at, kill
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.mariadb,
    pytest.mark.timeout(400),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
GROUP_MIB = 64  # less than a new MariaDB's files, and four of a new PostgreSQL's WAL files
ROWS, ROW_BYTES = 12_000, 16_000  # in sum three groups
PREPARE = {
    "postgres": ("create table big (i int primary key, s text storage external)",),
    "mysql": ("create database big", "create table big.big (i int primary key, s longtext)"),
}
TABLE = {"postgres": "big", "mysql": "big.big"}
LOAD = {
    "postgres": f"insert into big select i, repeat(md5(i::text), 500) from generate_series(1, {ROWS}) i",
    "mysql": f"insert into big.big select seq, repeat(md5(seq), 500) from big.seq_1_to_{ROWS}",
}


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "growth", up=False) as cli:
        cli.environment["AURORA_GROUP_BYTES"] = f"{GROUP_MIB}MiB"
        cli.up("--name", "postgres")
        cli.json("create", "mysql", "--engine", "mysql", timeout_s=150)
        yield cli


@pytest.mark.parametrize("engine", ["postgres", "mysql"])
def test_what_outgrows_a_group_goes_into_the_next(fleet: CliFleet, engine: str) -> None:
    table, begun = TABLE[engine], _groups(fleet, engine)
    look = f"select count(*), sum(length(s)), max(md5(s)) from {table}"
    assert begun > 1 or engine == "postgres", "the redo log of a new MariaDB alone is larger than a group"
    fleet.json("add-reader", engine, timeout_s=120)
    for statement in (*PREPARE[engine], LOAD[engine]):
        fleet.check("sql", engine, "-c", statement, timeout_s=120)
    whole = _ask(fleet, engine, look)
    assert [int(each) for each in whole[0][:2]] == [ROWS, ROWS * ROW_BYTES]
    assert _groups(fleet, engine) >= begun + 2
    poll_until_blocking(lambda: _ask(fleet, engine, look, "--reader") == whole, 60, what="the reader has it all")
    _ask(fleet, engine, f"insert into {table} select i + 100000, s from {table} where mod(i, 3) = 0")
    more = _ask(fleet, engine, look)
    kill(next(each["pid"] for each in fleet.status(engine)["instances"] if each["role"] == "writer"))
    poll_until_blocking(lambda: _ask(fleet, engine, look) == more, 90, interval_s=0.5, what="it is back, with all rows")
    poll_until_blocking(lambda: _ask(fleet, engine, look, "--reader") == more, 60, what="the reader has it all")
    if engine == "mysql":
        assert _ask(fleet, engine, f"check table {table} extended")[0][3] == "OK"


def _groups(fleet: CliFleet, engine: str) -> int:
    return int(fleet.status(engine)["volume"]["protection_groups"])


def _ask(fleet: CliFleet, engine: str, statement: str, *how: str) -> list[list[Any]]:
    """Its rows; none if it failed."""
    done = fleet.run("sql", engine, *how, "-c", statement, "--json", timeout_s=120)
    return list(json.loads(done.stdout)["rows"] or []) if done.returncode == 0 else []
