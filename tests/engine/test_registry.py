"""The engines that there are, and how clients are led to them."""

from pathlib import Path

import pytest

from aurora_ray.engine.postgres import client as client_module
from aurora_ray.engine.postgres.client import PostgresClient
from aurora_ray.engine.registry import DEFAULT_ENGINE, ENGINES, adapter, adapters
from aurora_ray.errors import AuroraError, UsageError

PASSFILE = Path("data/pass files/demo.pgpass")


def test_engines_are_found_by_name() -> None:
    assert adapter(DEFAULT_ENGINE).name == DEFAULT_ENGINE
    assert tuple(each.name for each in adapters()) == ENGINES
    with pytest.raises(UsageError, match=r"'oracle' is not known; there is: postgres"):
        adapter("oracle")


def test_no_two_engines_are_mistaken_for_each_other() -> None:
    assert len({each.version_file for each in adapters()}) == len(ENGINES)


def test_a_dsn_leads_to_one_address_or_to_the_one_of_several_that_takes_writes() -> None:
    client = PostgresClient()
    assert client.dsn([("127.0.0.1", 5432)], PASSFILE) == (
        "postgresql://postgres@127.0.0.1:5432/postgres?passfile=data/pass%20files/demo.pgpass"
    )
    several = client.dsn([("::1", 1), ("host", 2)], PASSFILE, writable=True)
    assert several.startswith("postgresql://postgres@[::1]:1,host:2/postgres?")
    assert several.endswith("&target_session_attrs=read-write")


def test_what_a_server_that_is_not_there_says_is_a_sentence(tmp_path: Path) -> None:
    dsn = PostgresClient().dsn([("127.0.0.1", 1)], tmp_path / "none")
    with pytest.raises(AuroraError, match="refused") as raised:
        PostgresClient().query(dsn, "select 1")
    assert "\n" not in str(raised.value)


@pytest.mark.postgres
def test_people_get_a_psql_of_the_servers_version_that_edits_lines() -> None:
    """The default wheel's does not; another wheel brings one of the same version."""
    command = PostgresClient().command_line("dsn", "18", None, ["select 1", "select 2"], ["--csv"])
    assert command[1:] == ["dsn", "-X", "-c", "select 1", "-c", "select 2", "--csv"]
    psql = Path(command[0])
    assert client_module._edits_lines(psql)
    found = [install for install in client_module.discover() if install.bin_dir == psql.parent]
    assert [install.major for install in found] == [18]
