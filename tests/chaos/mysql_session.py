# ruff: noqa: S608 - all names and values in the statements are made here
"""Sessions with MariaDB that take what the history clients say (`workload`), as a session of psycopg would.

The clients' statements are few, so each has its like here. A list is text, its values one after the other. Errors come
as psycopg's: what is to be tried again, what ends the session, what is somebody's fault. Isolation is SERIALIZABLE:
InnoDB locks what is read then, and promises what the judges ask of PostgreSQL. Statements that commit by themselves are
explicit transactions here, as InnoDB makes a lone read under SERIALIZABLE a plain snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import psycopg
import pymysql
from psycopg.errors import DeadlockDetected, InternalError_, SerializationFailure

from aurora_ray.engine.mariadb.connection import connect
from tests.chaos import workload

DATABASE = "histories"
LOST = (0, 1053, 1077, 1080, 1152, 1158, 1159, 1160, 1161, 1927, 2002, 2003, 2006, 2013, 2014, 2055)
SCHEMA = (
    f"CREATE DATABASE {DATABASE}",
    f"CREATE TABLE {DATABASE}.lists (k varchar(64) PRIMARY KEY, vals longtext NOT NULL)",
    f"CREATE TABLE {DATABASE}.accounts (k varchar(64) PRIMARY KEY, balance bigint NOT NULL, entries longtext NOT NULL)",
    f"CREATE TABLE {DATABASE}.registers (k varchar(64) PRIMARY KEY, value bigint NOT NULL)",
)
_APPEND = "INSERT INTO lists VALUES (%s, %s) ON DUPLICATE KEY UPDATE vals = concat(vals, ',', VALUES(vals))"
_ENTER = (
    "UPDATE accounts SET balance = balance + %s, entries = concat_ws(',', nullif(entries, ''), %s) "
    "WHERE k = %s AND balance + %s >= 0"
)
_SET = "INSERT INTO registers VALUES (%s, %s) ON DUPLICATE KEY UPDATE value = VALUES(value)"
_OPEN = f"INSERT IGNORE INTO accounts VALUES (%s, {workload.OPENING_BALANCE}, '')"
# What the clients say: how it is said here, and which columns of the answer are lists.
_SAME: dict[str, tuple[str, tuple[int, ...]]] = {
    workload.APPEND: (_APPEND, ()),
    workload.LIST: ("SELECT vals FROM lists WHERE k = %s", (0,)),
    workload.ENTER: (_ENTER, ()),
    workload.ACCOUNT: ("SELECT entries, balance FROM accounts WHERE k = %s", (0,)),
    workload.SET: (_SET, ()),
    workload.GET: ("SELECT value FROM registers WHERE k = %s", ()),
}
_MANY = {
    "lists": ("SELECT k, vals FROM lists WHERE k IN %s", (1,)),
    "accounts": ("SELECT k, entries FROM accounts WHERE k IN %s", (1,)),
    "registers": ("SELECT k, value FROM registers WHERE k IN %s", (1,)),
}


def prepare(dsn: str) -> None:
    """Makes the tables."""
    with connect(dsn) as session, session.cursor() as cursor:
        for statement in SCHEMA:
            cursor.execute(statement)


def check_tables_are_whole(dsn: str) -> None:
    """As the server itself checks them."""
    with _told(), connect(dsn, database=DATABASE) as session, session.cursor() as cursor:
        cursor.execute("CHECK TABLE lists, accounts, registers EXTENDED")
        told = cursor.fetchall()
    assert [row[3] for row in told] == ["OK"] * 3, told


class Answer(NamedTuple):
    """As a cursor has it."""

    rows: list[tuple[Any, ...]]
    rowcount: int
    statusmessage: str

    def fetchone(self) -> tuple[Any, ...] | None:
        return self.rows[0] if self.rows else None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class MysqlSession:
    """One session."""

    def __init__(self, dsn: str, *, reads: bool = False) -> None:
        self._open = False  # a transaction is
        with _told():
            self._session = connect(dsn, database=DATABASE, read_timeout=60, write_timeout=60)
            isolation = "REPEATABLE READ" if reads else "SERIALIZABLE"
            self._run(f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}", ())
            self._run("SET SESSION innodb_lock_wait_timeout = 5", ())

    def __enter__(self) -> MysqlSession:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session.open:
            self._session.close()

    @property
    def closed(self) -> bool:
        return not self._session.open

    def fileno(self) -> int:
        sock = self._session._sock
        if sock is None or sock.fileno() < 0:
            raise psycopg.OperationalError("the connection is closed")
        return int(sock.fileno())

    def execute(self, statement: str | bytes, parameters: Sequence[Any] = ()) -> Answer:
        """Raises psycopg.Error."""
        said = statement.decode() if isinstance(statement, bytes) else statement
        with _told():
            if said in ("BEGIN", "COMMIT", "ROLLBACK"):
                self._open = said == "BEGIN"
                self._run(said, ())
                return Answer([], 0, said)
            if said.startswith("SET TRANSACTION"):  # SERIALIZABLE, which is more
                return Answer([], 0, said)
            if self._open:
                return self._do(said, parameters)
            self._run("BEGIN", ())
            try:
                answer = self._do(said, parameters)
            except pymysql.MySQLError:
                if self._session.open:
                    self._run("ROLLBACK", ())
                raise
            self._run("COMMIT", ())
            return answer

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As psycopg's."""
        self.execute("BEGIN")
        yield
        self.execute("COMMIT")

    def _do(self, said: str, parameters: Sequence[Any]) -> Answer:
        if said.startswith("INSERT INTO accounts"):
            for key in parameters[0].obj:
                self._run(_OPEN, (key,))
            return Answer([], 0, "")
        if "ANY(" in said:
            if not parameters[0]:
                return Answer([], 0, "")
            statement, lists = _MANY[said.split(" FROM ")[1].split(maxsplit=1)[0]]
        else:
            statement, lists = _SAME[said]
        given = list(parameters)
        if said == workload.APPEND:
            given[1] = ",".join(map(str, given[1]))
        rows, count = self._run(statement, given)
        return Answer([tuple(_list(v) if i in lists else v for i, v in enumerate(row)) for row in rows], count, "")

    def _run(self, statement: str, parameters: Sequence[Any]) -> tuple[list[tuple[Any, ...]], int]:
        with self._session.cursor() as cursor:
            count = cursor.execute(statement, tuple(parameters) or None)
            return list(cursor.fetchall()), count


def session_at(dsn: str) -> psycopg.Connection:
    """A session with whichever engine that connection string is of."""
    if dsn.startswith("--"):
        return cast("psycopg.Connection", MysqlSession(dsn))
    return psycopg.connect(dsn, connect_timeout=5, autocommit=True)


def _list(value: Any) -> list[int]:
    return [int(each) for each in str(value).split(",") if each]


@contextmanager
def _told() -> Iterator[None]:
    """Errors as psycopg's."""
    try:
        yield
    except pymysql.MySQLError as error:
        number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        if number == 1213:
            raise DeadlockDetected(str(error)) from error
        if number == 1205:  # the statement was given up, and so is the transaction
            raise SerializationFailure(str(error)) from error
        if number in LOST or isinstance(error, pymysql.InterfaceError):
            raise psycopg.OperationalError(str(error)) from error
        raise InternalError_(str(error)) from error  # which no client may be told
    except OSError as error:
        raise psycopg.OperationalError(str(error)) from error
