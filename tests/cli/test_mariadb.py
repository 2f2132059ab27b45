"""A cluster that MySQL's clients speak to, beside one of PostgreSQL on the same storage nodes, by the same commands."""

import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from tests.cli.fleet import CliFleet, fleet_at, kill
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.ray,
    pytest.mark.mariadb,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
NAME = "orders"
COUNT = "select count(*) from shop.t"


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "mysql") as cli:
        cli.sql("create table t as select 1 as i")
        cli.json("create", NAME, "--engine", "mysql", timeout_s=150)
        create = "create database shop; create table shop.t (i int primary key); insert into shop.t values (1), (2)"
        client(dsn_of(cli), create)
        yield cli


def client(dsn: str, statement: str) -> str:
    """What people type: `mariadb $DSN`."""
    command = ["mariadb", *shlex.split(dsn), "--batch", "--skip-column-names", f"--execute={statement}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def answers(dsn: str) -> bool:
    """A client that comes is held until the server is back, unless it was cut in the moment of the kill."""
    try:
        return bool(client(dsn, COUNT))
    except subprocess.CalledProcessError:
        return False


def rows(fleet: CliFleet, statement: str, name: str = NAME) -> Any:
    return fleet.json("sql", name, "-c", statement)["rows"]


def dsn_of(fleet: CliFleet, name: str = NAME) -> str:
    return str(fleet.status(name)["endpoints"]["cluster"]["dsn"])


def session(fleet: CliFleet) -> "pymysql.Connection[Any]":
    endpoint = fleet.status(NAME)["endpoints"]["cluster"]
    password = fleet.data_dir / "passfiles" / f"{NAME}.cnf"
    return pymysql.connect(
        host=endpoint["host"], port=endpoint["port"], read_default_file=str(password), autocommit=True
    )


@pytest.mark.chaos
def test_its_dsn_is_what_the_client_takes_and_both_engines_are_asked_alike(fleet: CliFleet) -> None:
    dsn = dsn_of(fleet)
    assert client(dsn, COUNT) == "2"
    assert rows(fleet, COUNT) == [[2]]
    assert rows(fleet, "select count(*) from t", "demo") == [[1]]
    assert fleet.check("sql", NAME, "-c", COUNT, "-c", "select 'next'").split()[-1] == "next"
    status = fleet.status(NAME)
    assert (status["engine"], status["engine_version"]) == ("mysql", "10.11")
    assert status["endpoints"]["cluster"]["sessions"]["handed"] > 0, "the server has its clients' sockets"
    secret = (fleet.data_dir / "passfiles" / f"{NAME}.cnf").read_text().split('password="')[1].split('"')[0]
    pid = next(each["pid"] for each in status["instances"])
    assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.long
def test_parameters_are_known_checked_and_in_force(fleet: CliFleet) -> None:
    done = fleet.json("parameters", NAME, "set", "max_connections=77", "performance_schema=ON")["parameters"]
    assert {each["name"]: each["applies"] for each in done} == {
        "max_connections": "dynamic",
        "performance_schema": "pending-reboot",
    }
    assert rows(fleet, "select @@max_connections, @@performance_schema") == [[77, 0]]
    for wrong in (
        "innodb_page_size=4k",
        "log_bin=OFF",
        "innodb_flush_log_at_trx_commit=2",
        "max_connections=many",
        "nonsense=1",
    ):
        assert fleet.run("parameters", NAME, "set", wrong).returncode == 2, wrong
    shown = {each["name"]: each for each in fleet.json("parameters", NAME)}
    assert shown["innodb_flush_method"]["source"] == "fixed"
    fleet.json("failover", NAME, timeout_s=90)
    assert rows(fleet, "select @@max_connections, @@performance_schema") == [[77, 1]]
    assert rows(fleet, COUNT) == [[2]]
    fleet.json("parameters", NAME, "reset", "performance_schema", "max_connections")


@pytest.mark.chaos
def test_what_is_not_there_yet_is_refused_in_words(fleet: CliFleet) -> None:
    refused = fleet.run("bench", "run", NAME)
    assert (refused.returncode, "for postgres alone" in refused.stderr) == (2, True), refused.stderr


@pytest.mark.chaos
def test_a_killed_server_is_back_with_every_commit_while_new_clients_are_held(fleet: CliFleet) -> None:
    dsn, told, unknown = dsn_of(fleet), [], []
    began, ended = threading.Event(), threading.Event()

    def commit() -> None:
        number = 1000
        while not ended.is_set():
            try:
                with session(fleet) as own, own.cursor() as cursor:
                    while not ended.is_set():
                        number += 1
                        unknown.append(number)
                        cursor.execute("insert into shop.t values (%s)", (number,))
                        told.append(number)
                        began.set() if len(told) > 50 else None
            except pymysql.MySQLError:
                time.sleep(0.05)  # not synchronisation: the next try

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        assert began.wait(60)
        pid = fleet.status(NAME)["instances"][0]["pid"]
        kill(pid)
        poll_until_blocking(lambda: answers(dsn), 60, what="new clients are served")
        before = len(told)
        poll_until_blocking(lambda: len(told) > before + 50, 60, what="commits go on")
    finally:
        ended.set()
        thread.join(60)
    there = {row[0] for row in rows(fleet, "select i from shop.t where i > 1000")}
    assert set(told) <= there <= set(unknown)
    assert rows(fleet, "check table shop.t extended") == [["shop.t", "check", "status", "OK"]]
    assert fleet.status(NAME)["instances"][0]["pid"] != pid


@pytest.mark.long
def test_the_past_is_seen_cloned_and_taken_back(fleet: CliFleet) -> None:
    before = rows(fleet, COUNT)
    fleet.check("mark", NAME, "good")
    rows(fleet, "drop table shop.t")
    assert fleet.json("as-of", NAME, "mark:good", "--sql", COUNT, timeout_s=120)["rows"] == before
    fleet.json("clone", NAME, "copy", "--at", "mark:good", timeout_s=120)
    assert rows(fleet, COUNT, "copy") == before
    rows(fleet, "delete from shop.t", "copy")
    fleet.json("backtrack", NAME, "--to", "mark:good", timeout_s=120)
    assert rows(fleet, COUNT) == before
    assert rows(fleet, COUNT, "copy") == [[0]]


@pytest.mark.long
def test_a_cluster_that_was_stopped_opens_again(fleet: CliFleet) -> None:
    before = rows(fleet, COUNT)
    fleet.check("down", timeout_s=120)
    fleet.up()
    poll_until_blocking(lambda: fleet.status(NAME)["state"] == "available", 90, what="it is available")
    assert rows(fleet, COUNT) == before
    assert rows(fleet, "select count(*) from t", "demo") == [[1]]
