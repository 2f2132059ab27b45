"""What we ask of a running server, in sessions over its private socket."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.engine.mariadb import accounts
from aurora_ray.engine.mariadb.catalogue import number_of
from aurora_ray.engine.mariadb.connection import sentence
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TIMEOUT_S: Final = 10.0
LEFT_PAGES: Final = 64  # dirty ones that are few enough: an idle server makes some, and they are written in no time
_WRITE_BACK_EVERY_S: Final = 0.05
_EAGER: Final = ("innodb_max_dirty_pages_pct", "innodb_max_dirty_pages_pct_lwm")
_DYNAMIC: Final = (
    "SELECT lower(variable_name) FROM information_schema.system_variables "
    "WHERE read_only = 'NO' AND variable_scope <> 'SESSION ONLY'"
)


class Administration:
    """Sessions as our own account, whose `password` each start makes anew. Each is of one call."""

    def __init__(self, socket: Path) -> None:
        self.password = ""
        self._socket = socket

    async def give_password(self, password: str, timeout_s: float) -> None:
        """Makes it the owner's if he has none. Raises EngineError."""
        await self._in_thread(self._give, password, timeout_s=timeout_s)

    async def write_back(self, timeout_s: float) -> None:
        """Has InnoDB write its dirty pages. Raises EngineError if that takes longer."""
        await self._in_thread(self._write_back, timeout_s, timeout_s=timeout_s)

    async def set_global(
        self, before: Mapping[str, str], after: Mapping[str, str], defaults: Mapping[str, str]
    ) -> None:
        """Puts changed parameters into force, where that can be; those that are no longer set have their defaults
        again. Raises EngineError."""
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        reset = {name: defaults.get(name) for name in before if name not in after}
        if changed or reset:
            await self._in_thread(self._set, {**changed, **reset}, timeout_s=TIMEOUT_S)

    async def _in_thread(self, work: Any, argument: Any, *, timeout_s: float) -> None:
        import pymysql

        try:
            await asyncio.to_thread(work, argument, timeout_s)
        except (pymysql.MySQLError, OSError) as error:
            raise EngineError(f"the server refuses what its fleet asks of it: {sentence(error)}") from error

    def _give(self, password: str, timeout_s: float) -> None:
        with self.session(timeout_s) as session, session.cursor() as cursor:
            cursor.execute(accounts.NEW_OWNER, accounts.NEW_OWNER_IS)
            if cursor.fetchone()[0]:
                _run(cursor, accounts.give(password))

    def _set(self, values: Mapping[str, str | None], timeout_s: float) -> None:
        with self.session(timeout_s) as session, session.cursor() as cursor:
            cursor.execute(_DYNAMIC)
            dynamic = {row[0] for row in cursor.fetchall()}
            wanted = {name: value for name, value in values.items() if name in dynamic}
            _run(cursor, [f"SET GLOBAL {name} = {_literal(session, value)}" for name, value in wanted.items()])

    def _write_back(self, limit_s: float, timeout_s: float) -> None:
        ends_s = time.monotonic() + limit_s
        with self.session(timeout_s) as session, session.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(f'@@{name}' for name in _EAGER)}")
            before = cursor.fetchone()
            try:
                _run(cursor, [f"SET GLOBAL {name} = 0" for name in _EAGER])
                while _dirty_pages(cursor) > LEFT_PAGES:
                    if time.monotonic() > ends_s:
                        raise EngineError(f"the server has not written its pages within {limit_s:g} s")
                    time.sleep(_WRITE_BACK_EVERY_S)
            finally:
                values = zip(_EAGER, before, strict=True)
                _run(cursor, [f"SET GLOBAL {name} = {value}" for name, value in values])

    def session(self, timeout_s: float) -> Any:
        """Of PyMySQL; each answer must come within the timeout. Raises what that raises."""
        import pymysql

        seconds = max(1, round(timeout_s))
        return pymysql.connect(
            unix_socket=str(self._socket),
            user=accounts.OURS,
            password=self.password,
            connect_timeout=seconds,
            read_timeout=seconds,
            write_timeout=seconds,
            autocommit=True,
        )


def _dirty_pages(cursor: Any) -> int:
    cursor.execute("SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'")
    return int(cursor.fetchone()[1])


def _run(cursor: Any, statements: Sequence[str]) -> None:
    for statement in statements:
        cursor.execute(statement)


def _literal(session: Any, value: str | None) -> str:
    """A value as SQL: numbers with units are numbers."""
    if value is None:
        return "DEFAULT"
    number = number_of(value)
    if number is not None:
        return str(number)
    try:
        return repr(float(value))
    except ValueError:
        return str(session.escape(value))
