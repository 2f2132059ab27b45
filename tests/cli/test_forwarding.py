"""Two regions through the command: a session in the secondary one writes, whichever region is the primary."""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import errors

from tests.cli.fleet import CliFleet, kill
from tests.cli.test_global import EAST, WEST, east, region_of, until, west  # noqa: F401  (fixtures)
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.long,  # two fleets' starts, and changes of the primary
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(900),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
Session = psycopg.Connection[tuple[object, ...]]
COUNT = "select count(*) from t"
# What says that nothing of a transaction is kept, and that it may be run again.
AGAIN = (errors.SerializationFailure, errors.SqlclientUnableToEstablishSqlconnection)


@pytest.fixture(scope="module")
def session(east: CliFleet, west: CliFleet) -> Iterator[Session]:  # noqa: F811
    """Of a reader in the second region, kept through all that happens."""
    east.sql("create table t (i int primary key, v text)")
    until(west, "reader", COUNT, [[0]])
    with closing(psycopg.connect(region_of(west)["endpoints"]["reader"]["dsn"], autocommit=True)) as made:
        yield made


def written_again(session: Session, number: int, fleet: CliFleet) -> None:
    """Whoever runs a transaction again that was not kept has it once."""

    def writes() -> bool:
        try:
            with session.transaction():
                session.execute("insert into t values (%s, 'again')", [number])
        except AGAIN:
            return False
        return True

    poll_until_blocking(writes, 90, interval_s=0.2, what=f"the session writes again\n{fleet.trail()}")


def test_a_session_in_a_secondary_region_writes_at_the_primary(
    east: CliFleet,  # noqa: F811
    west: CliFleet,  # noqa: F811
    session: Session,
) -> None:
    with pytest.raises(errors.ReadOnlySqlTransaction):
        session.execute("insert into t values (1, 'refused')")
    assert west.run("global", "forwarding", "g", "maybe").returncode == 2
    done = west.json("global", "forwarding", "g", "on")
    assert (done["forwarding"], done["not_told"]) == (True, [])
    assert region_of(west)["write_forwarding"] is True

    def level() -> str:
        return str((session.execute("show apg_write_forward.consistency_mode").fetchone() or ("",))[0])

    poll_until_blocking(lambda: level() == "session", 20, what="the reader knows where the writer is")
    for number, chosen in enumerate(("eventual", "session", "global")):
        session.execute(f"set apg_write_forward.consistency_mode = '{chosen}'".encode())
        cursor = session.execute("insert into t values (%s, %s) returning v", [number, chosen], prepare=True)
        assert cursor.fetchall() == [(chosen,)]
        if chosen != "eventual":
            found = session.execute("select count(*), pg_is_in_recovery() from t", prepare=True).fetchall()
            assert found == [(number + 1, True)]
    east.sql("insert into t values (3, 'east')")
    assert session.execute(COUNT).fetchall() == [(4,)], "global: what others wrote, too"
    session.execute("reset apg_write_forward.consistency_mode")
    with session.transaction():
        session.execute("insert into t values (4, 'kept')")
        with session.transaction(force_rollback=True):
            session.execute("insert into t values (5, 'not kept')")
        with pytest.raises(errors.UniqueViolation), session.transaction():
            session.execute("insert into t values (4, 'twice')")
        assert session.execute(COUNT).fetchall() == [(5,)]
    assert session.execute(COUNT).fetchall() == [(5,)]
    assert east.sql("select max(i) from t") == [[4]]


def test_the_same_session_writes_wherever_the_primary_is(
    east: CliFleet,  # noqa: F811
    west: CliFleet,  # noqa: F811
    session: Session,
) -> None:
    session.execute("begin")
    session.execute("insert into t values (10, 'lost')")
    pid = next(i["pid"] for i in east.status()["instances"] if i["role"] == "writer")
    kill(pid)

    def breaks() -> bool:
        try:
            session.execute("select 1")
        except AGAIN:
            return True
        return False  # its processes end one after the other

    poll_until_blocking(breaks, 30, what="the transaction is lost with its writer")
    session.execute("rollback")
    written_again(session, 11, east)

    session.execute("begin")
    session.execute("insert into t values (12, 'lost')")
    east.check("global", "switchover", "g", "--to", WEST, timeout_s=150)
    with pytest.raises(AGAIN):
        session.execute("insert into t values (12, 'lost, too')")
    session.execute("rollback")
    written_again(session, 13, west)
    assert west.sql("select i from t where i >= 10 order by i") == [[11], [13]]

    east.check("global", "switchover", "g", "--to", EAST, timeout_s=150)
    written_again(session, 14, west)
    found = session.execute("select array_agg(i order by i), pg_is_in_recovery() from t where i >= 10").fetchall()
    assert found == [([11, 13, 14], True)]
    assert west.json("global", "forwarding", "g", "off")["forwarding"] is False

    def refuses() -> bool:
        try:
            session.execute("insert into t values (15, 'off')")
        except errors.ReadOnlySqlTransaction:
            return True
        session.execute("delete from t where i = 15")
        return False

    poll_until_blocking(refuses, 30, interval_s=0.2, what="the reader forwards no more")
