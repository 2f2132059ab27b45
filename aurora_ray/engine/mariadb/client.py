"""Clients of a MariaDB server on this machine: connection strings, statements, the client program.

A connection string is the options of the program `mariadb`, quoted for a shell where that is needed, so that it is
taken as it is: `mariadb $DSN`. The password is in the option file that the first of them names.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.engine.base import Rows
from aurora_ray.engine.mariadb.connection import connect, sentence
from aurora_ray.engine.mariadb.differences import differences
from aurora_ray.engine.mariadb.install import CLIENTS, PACKAGES, find_install, program
from aurora_ray.engine.mariadb.settings import forced_names
from aurora_ray.errors import AuroraError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aurora_ray.engine.base import Difference

ADMIN_FILE: Final = "admin.cnf"  # in the directory of a server's socket: how our own account gets in
_DENIED: Final = (1045, 1698)
_TOO_MANY: Final = 1040
_PARAMETERS: Final = """
SELECT lower(variable_name), coalesce(global_value, ''), coalesce(default_value, ''), global_value_origin, read_only
FROM information_schema.system_variables
WHERE variable_scope <> 'SESSION ONLY' AND ({}) ORDER BY 1"""
_SHOWN: Final = "global_value_origin <> 'COMPILE-TIME' AND command_line_argument IS NOT NULL"


def error_packet(number: int, message: str) -> bytes:
    """What a server says before its greeting, instead of it."""
    payload = b"\xff" + number.to_bytes(2, "little") + message.encode()
    return len(payload).to_bytes(3, "little") + b"\0" + payload


REFUSAL: Final = error_packet(_TOO_MANY, "the endpoint has as many sessions as it may have: close some first")


class MariadbClient:
    """See Client."""

    def dsn(self, addresses: Sequence[tuple[str, int]], passfile: Path, *, writable: bool = False) -> str:  # noqa: ARG002
        """The program takes one address: of several, that is the first."""
        host, port = addresses[0]
        return shlex.join([f"--defaults-file={passfile}", f"--host={host}", f"--port={port}"])

    def way_in(self, dsn: str, socket_dir: Path | None, port: int) -> str:  # noqa: ARG002
        """See Client."""
        import pymysql

        try:
            connect(dsn).close()
        except pymysql.MySQLError as error:
            if not error.args or error.args[0] not in _DENIED:
                return dsn
        else:
            return dsn
        if socket_dir is None or not os.access(socket_dir / ADMIN_FILE, os.R_OK):
            return dsn
        return shlex.join([f"--defaults-file={socket_dir / ADMIN_FILE}"])

    def query(self, dsn: str, statement: str) -> Rows:
        """See Client."""
        import pymysql

        try:
            session = connect(dsn)
            try:
                with session.cursor() as cursor:
                    count = cursor.execute(statement)
                    columns = [column[0] for column in cursor.description or ()]
                    rows = [[_plain(value) for value in row] for row in cursor.fetchall()] if columns else []
                    return Rows(columns, rows, count)
            finally:
                session.close()
        except (pymysql.MySQLError, OSError) as error:
            raise AuroraError(sentence(error)) from error

    def differences(self, before: str, after: str, table: str, database: str) -> Iterator[Difference]:
        """See Client."""
        return differences(before, after, table, database)

    def parameters(self, dsn: str, declared: Mapping[str, str], *, everything: bool) -> list[dict[str, str]]:
        """See Client; from information_schema.system_variables."""
        found = self.query(dsn, _PARAMETERS.format("true" if everything else _SHOWN)).rows
        rows = []
        for name, value, default, origin, read_only in found:
            source = {"COMPILE-TIME": "default", "SQL": "SET GLOBAL", "AUTO": "computed"}.get(origin, "aurora")
            if name in forced_names():
                source = "fixed"
            elif name in declared and source == "aurora":
                source = "cluster"
            changes = "never" if source == "fixed" else "at a reboot" if read_only == "YES" else "dynamic"
            rows.append(
                {"name": name, "value": value, "default": default, "unit": "", "source": source, "changes": changes}
            )
        return rows

    def command_line(
        self, dsn: str, version: str, bin_dir: Path | None, statements: Sequence[str], arguments: Sequence[str]
    ) -> list[str]:
        """The installation's own client, or any that is found."""
        # On lines of their own: a comment at the end of one shall not take the next one with it.
        script = "\n;\n".join(statement.rstrip().rstrip(";") for statement in statements)
        command = [f"--execute={script}"] if statements else []
        return [str(_program(version, bin_dir)), *shlex.split(dsn), *command, *arguments]


def _program(version: str, bin_dir: Path | None) -> Path:
    try:
        return program(find_install(version, bin_dir), *CLIENTS)
    except ConfigurationError:
        found = next(filter(None, map(shutil.which, CLIENTS)), None)
    if found is None:
        raise ConfigurationError(f"there is no {CLIENTS[0]} on this machine: install {PACKAGES.split()[1]}")
    return Path(found)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
