"""Amazon's own driver, aws-advanced-python-wrapper over psycopg, on a fleet: it finds the dialect and the instances by
what it asks in SQL, sends reads to readers, and is back at a writer after each kind of failover."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aws_advanced_python_wrapper import AwsWrapperConnection, release_resources
from aws_advanced_python_wrapper.errors import FailoverError, FailoverSuccessError
from aws_advanced_python_wrapper.hostinfo import HostRole

from tests.cli.fleet import CliFleet, fleet_at, kill
from tests.support.driver_garbage import garbage_closed
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp", "thread"),  # of the driver
    # What the driver says when an instance goes, and when its monitors meet one that is not there.
    pytest.mark.allowed_logs(r".*"),
    pytest.mark.filterwarnings("ignore"),
]
FAILOVER_S = 60.0


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with garbage_closed(), fleet_at(run_dir / "driver", up=False) as cli:
        status = cli.up("--readers", "2")
        cli.execute(status["endpoints"]["cluster"]["dsn"], "CREATE TABLE seen (id int)")
        yield cli
        release_resources()


def connected(fleet: CliFleet, plugins: str, **more: Any) -> AwsWrapperConnection:
    """As the README says it."""
    driver = fleet.status()["driver"]
    return AwsWrapperConnection.connect(
        psycopg.Connection.connect,
        driver["dsn"],
        cluster_instance_host_pattern=driver["host_pattern"],
        plugins=plugins,
        connect_timeout=10,
        autocommit=True,
        failover_timeout_sec=FAILOVER_S,
        **more,
    )


def ask(connection: AwsWrapperConnection, statement: str) -> Any:
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return cursor.fetchone()


def by_host(fleet: CliFleet) -> dict[str, dict[str, Any]]:
    """Instances by the address that a driver makes of the pattern."""
    status = fleet.status()
    return {status["driver"]["host_pattern"].replace("?", i["host_id"]): i for i in status["instances"]}


def topology(connection: AwsWrapperConnection) -> dict[str, str]:
    connection._plugin_service.force_refresh_host_list()
    return {host.host: host.role.name.lower() for host in connection._plugin_service.all_hosts}


def until_back(connection: AwsWrapperConnection, statement: str) -> type[FailoverError]:
    """Repeats the statement until the driver says that it has changed instances; how it said it."""
    ends_s = time.monotonic() + FAILOVER_S
    while time.monotonic() < ends_s:
        try:
            ask(connection, statement)
        except FailoverError as error:
            return type(error)
        time.sleep(0.05)  # not synchronisation: a client that works on
    raise AssertionError("the driver noticed nothing")


def test_it_finds_dialect_and_topology(fleet: CliFleet) -> None:
    with closing(connected(fleet, "failover")) as connection:
        assert type(connection._plugin_service.database_dialect).__name__ == "AuroraPgDialect"
        assert topology(connection) == {host: i["role"] for host, i in by_host(fleet).items()}
        assert connection._plugin_service.current_host_info.role == HostRole.WRITER
        (shown,) = ask(connection, "SELECT aurora_db_instance_identifier()")
        assert shown in {i["host_id"] for i in by_host(fleet).values()}
    status = fleet.status()
    named = fleet.execute(status["endpoints"]["cluster"]["dsn"], "SELECT aurora_db_instance_identifier()")
    assert named == [("demo-1",)], "who comes by the ordinary address is told names"


def test_it_splits_reads_and_writes(fleet: CliFleet) -> None:
    with closing(connected(fleet, "read_write_splitting,failover")) as connection:
        ask(connection, "INSERT INTO seen VALUES (1) RETURNING id")
        writer = ask(connection, "SELECT aurora_db_instance_identifier(), pg_is_in_recovery()")
        connection.read_only = True
        reader = ask(connection, "SELECT aurora_db_instance_identifier(), pg_is_in_recovery()")
        connection.read_only = False
        again = ask(connection, "SELECT aurora_db_instance_identifier(), pg_is_in_recovery()")
    roles = {i["host_id"]: i["role"] for i in by_host(fleet).values()}
    assert (roles[writer[0]], roles[reader[0]], again) == ("writer", "reader", writer)
    assert (writer[1], reader[1]) == (False, True)


def planned(fleet: CliFleet) -> None:
    fleet.json("failover", "demo", timeout_s=120)


def killed(fleet: CliFleet) -> None:
    kill(next(i["pid"] for i in fleet.status()["instances"] if i["role"] == "writer"))


@pytest.mark.parametrize("plugin", ["failover", "failover_v2"])
@pytest.mark.parametrize("lose", [planned, killed])
def test_it_is_back_at_the_writer_after_a_failover(
    fleet: CliFleet, plugin: str, lose: Callable[[CliFleet], None]
) -> None:
    fleet.until(lambda s: all(i["state"] == "available" for i in s["instances"]), "all are there")
    with closing(connected(fleet, plugin)) as connection:
        ask(connection, "INSERT INTO seen VALUES (2) RETURNING id")
        lose(fleet)
        assert until_back(connection, "INSERT INTO seen VALUES (3) RETURNING id") is FailoverSuccessError
        ask(connection, "INSERT INTO seen VALUES (4) RETURNING id")  # not refused as by a reader (25006)
        host = connection._plugin_service.current_host_info.host

        def agree() -> bool:
            return topology(connection) == {each: i["role"] for each, i in by_host(fleet).items()}

        poll_until_blocking(agree, FAILOVER_S, what=f"the driver knows the fleet as it is\n{fleet.trail()}")
        assert by_host(fleet)[host]["role"] == "writer"
