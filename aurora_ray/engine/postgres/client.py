"""Clients of a PostgreSQL server on this machine: connection strings, statements, psql.

Connection strings are libpq's URIs with `passfile=`, so that no secret stands in one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from aurora_ray.engine.base import Difference, Rows
from aurora_ray.engine.postgres.differences import differences
from aurora_ray.engine.postgres.image import SUPERUSER
from aurora_ray.engine.postgres.install import discover, find_install
from aurora_ray.errors import AuroraError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


def _error(code: str, message: str) -> bytes:
    """An ErrorResponse of PostgreSQL's protocol."""
    fields = "".join(f"{key}{value}\0" for key, value in (("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", message)))
    return b"E" + (4 + len(fields) + 1).to_bytes(4, "big") + fields.encode() + b"\0"


CANCEL_CODE: Final = 80877102  # of a CancelRequest
REFUSAL: Final = _error("53300", "the endpoint has as many sessions as it may have: close some first")

_SHOWN: Final = "setting <> coalesce(boot_val, '') OR pending_restart OR source NOT IN ('default', 'override')"
_PARAMETERS: Final = """
SELECT name, current_setting(name, true), coalesce(boot_val, ''), coalesce(unit, ''),
       CASE WHEN source = 'command line' THEN 'fixed' WHEN sourcefile LIKE '%/postgresql.auto.conf' THEN 'ALTER SYSTEM'
            WHEN sourcefile LIKE '%/run/postgresql.conf' THEN 'aurora' ELSE source END,
       CASE WHEN pending_restart THEN 'pending-reboot' WHEN context = 'internal' THEN 'never'
            WHEN context = 'postmaster' THEN 'at a reboot' ELSE 'dynamic' END
FROM pg_settings WHERE {} ORDER BY name"""
_COLUMNS: Final = ("name", "value", "default", "unit", "source", "changes")


class PostgresClient:
    """See Client."""

    def dsn(self, addresses: Sequence[tuple[str, int]], passfile: Path, *, writable: bool = False) -> str:
        """libpq tries several addresses in their order, and asks each whether it takes writes if that is wanted."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)
        wanted = "&target_session_attrs=read-write" if writable else ""
        return f"postgresql://{SUPERUSER}@{hosts}/postgres?passfile={quote(str(passfile))}{wanted}"

    def way_in(self, dsn: str, socket_dir: Path | None, port: int) -> str:
        """See Client."""
        import psycopg
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError as error:
            if "authentication failed" not in str(error):
                return dsn
        else:
            return dsn
        if socket_dir is None or not os.access(socket_dir, os.X_OK):
            return dsn
        parts = conninfo_to_dict(dsn)
        return make_conninfo("", host=str(socket_dir), port=port, user=parts["user"], dbname=parts["dbname"])

    def query(self, dsn: str, statement: str) -> Rows:
        """See Client."""
        import psycopg

        try:
            with psycopg.connect(dsn, autocommit=True) as session:
                cursor = session.execute(statement.encode())
                columns = [column.name for column in cursor.description or ()]
                rows = [[_plain(value) for value in row] for row in cursor.fetchall()] if columns else []
                return Rows(columns, rows, cursor.rowcount)
        except psycopg.Error as error:
            raise AuroraError(str(error).strip().replace("\n", " ")) from error

    def differences(self, before: str, after: str, table: str, database: str) -> Iterator[Difference]:
        """See Client."""
        return differences(before, after, table, database or "postgres")

    def parameters(self, dsn: str, declared: Mapping[str, str], *, everything: bool) -> list[dict[str, str]]:
        """See Client; from pg_settings."""
        found = self.query(dsn, _PARAMETERS.format("true" if everything else _SHOWN)).rows
        rows = [dict(zip(_COLUMNS, (str(value) for value in row), strict=True)) for row in found]
        for row in rows:
            if row["name"] in declared and row["source"] == "aurora":
                row["source"] = "cluster"
        return rows

    def command_line(
        self, dsn: str, version: str, bin_dir: Path | None, statements: Sequence[str], arguments: Sequence[str]
    ) -> list[str]:
        """A psql of the server's major version, one that edits lines if there is one; else any."""
        command = ["-X", *(word for statement in statements for word in ("-c", statement))] if statements else []
        return [str(_psql(bin_dir, version)), dsn, *command, *arguments]


def _psql(bin_dir: Path | None, version: str) -> Path:
    try:
        candidates = [find_install(version, bin_dir)]
    except ConfigurationError:
        candidates = []
    candidates += discover()
    found = [(install, install.bin_dir / "psql") for install in candidates]
    found = [(install, psql) for install, psql in found if os.access(psql, os.X_OK)]
    major = version.partition(".")[0]
    found.sort(key=lambda each: (str(each[0].major) != major, not _edits_lines(each[1])))
    if found:
        return found[0][1]
    raise ConfigurationError("there is no psql on this machine: install it, or use the DSN of `aurora status`")


def _edits_lines(psql: Path) -> bool:
    """Whether it was built with a library for that: the names of those it loads stand in it."""
    return any(library in psql.read_bytes() for library in (b"libreadline", b"libedit"))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
