"""A table's rows at two moments, as engine/differences.py compares them.

Each side is a server of its own, and sorts by itself: by a hash of the primary key if both sides have the same one,
else of the whole row, which makes the rows a multiset. A hash, because what is sorted by must have one order that is no
collation's, and a bounded length. Here is never more than what the network holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aurora_ray.engine.differences import merged
from aurora_ray.engine.mariadb.connection import connect, sentence
from aurora_ray.errors import AuroraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aurora_ray.engine.base import Difference

_COLUMNS: Final = """
SELECT column_name, data_type, column_key = 'PRI', character_set_name IS NOT NULL
FROM information_schema.columns WHERE table_schema = %s AND table_name = %s
ORDER BY ordinal_position"""
_NUMBERS: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double", "year"})
_WORDS: Final = frozenset({"date", "datetime", "timestamp", "time", "uuid", "inet4", "inet6"})
_IN_UTC: Final = "SET SESSION time_zone = '+00:00'"


class _Side(NamedTuple):
    """One moment. `columns`: name and how it is told, in SQL; none if there is no table. `key`: names."""

    session: Any
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]


def differences(before: str, after: str, table: str, database: str) -> Iterator[Difference]:
    """See Client."""
    import pymysql

    schema, _, name = table.rpartition(".")
    schema = schema or database
    if not schema:
        raise UsageError(f"in which database is {table}? Say database.table, or --database")
    try:
        with connect(before) as one, connect(after) as other:
            sides = (_side(one, schema, name), _side(other, schema, name))
            if not any(side.columns for side in sides):
                raise UsageError(f"there is no table {schema}.{name} at either moment")
            key = sides[0].key if all(side.columns for side in sides) else ()
            if any(side.columns and side.key != key for side in sides):
                key = ()
            yield from merged(*(_rows(side, _quoted(schema, name), key) for side in sides))
    except pymysql.MySQLError as error:
        raise AuroraError(sentence(error)) from error


def _side(session: Any, schema: str, name: str) -> _Side:
    with session.cursor() as cursor:
        cursor.execute(_IN_UTC)
        cursor.execute(_COLUMNS, (schema, name))
        found = cursor.fetchall()
    columns = tuple((column, _told(column, kind, is_text)) for column, kind, _, is_text in found)
    return _Side(session, columns, tuple(column for column, _, in_key, _ in found if in_key))


def _told(column: str, kind: str, is_text: int) -> str:
    """A column in SQL, as JSON can hold it."""
    quoted = _quoted(column)
    if kind in _NUMBERS:
        return quoted
    if is_text or kind in _WORDS:
        return f"CONVERT({quoted} USING utf8mb4)"
    return f"HEX({quoted})"


def _rows(side: _Side, table: str, key: tuple[str, ...]) -> Iterator[tuple[bytes, str]]:
    import pymysql.cursors

    if not side.columns:
        return
    told = dict(side.columns)
    row = ", ".join(f"{_literal(column)}, {how}" for column, how in side.columns)
    by = ", ".join(told[column] for column in key) if key else row
    statement = f"SELECT SHA2(JSON_ARRAY({by}), 256), JSON_OBJECT({row}) FROM {table} ORDER BY 1"  # noqa: S608
    with side.session.cursor(pymysql.cursors.SSCursor) as cursor:
        cursor.execute(statement)
        for by_hash, shown in cursor:
            yield by_hash.encode(), shown


def _quoted(*names: str) -> str:
    return ".".join("`" + name.replace("`", "``") + "`" for name in names)


def _literal(name: str) -> str:
    return "'" + name.replace("\\", "\\\\").replace("'", "''") + "'"
