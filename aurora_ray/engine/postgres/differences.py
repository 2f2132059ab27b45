"""A table's rows at two moments, as engine/differences.py compares them.

Each side is a server of its own, and sorts by itself, on its disk if need be: by the primary key if both sides have the
same one, else by the whole row, which makes the rows a multiset (one that is there three times and then once *went*
twice). What is sorted by is text as UTF-8 bytes, so that the order is no collation's and both sides and we agree on it.
Here are never more than BATCH rows of each side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aurora_ray.engine.differences import merged
from aurora_ray.errors import AuroraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from aurora_ray.engine.base import Difference

BATCH: Final = 1000
CONNECT_TIMEOUT_S: Final = 10

# So that equal values are equal texts, whatever the roles' and databases' own settings.
_SETTINGS: Final = (
    "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=postgres -c extra_float_digits=1 -c bytea_output=hex"
    " -c statement_timeout=0 -c default_transaction_read_only=on"
)
_COMPARABLE: Final = "rpmvf"  # tables, partitioned and foreign ones, views of both kinds
_TABLE: Final = "SELECT c.oid::regclass::text, c.relkind FROM pg_class c WHERE c.oid = to_regclass(%s)"
_KEY: Final = """
SELECT coalesce(array_agg(quote_ident(a.attname) ORDER BY k.n), '{}')
FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(attnum, n), pg_attribute a
WHERE i.indrelid = to_regclass(%s) AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.attnum
      AND k.n <= i.indnkeyatts"""


class _Side(NamedTuple):
    """One moment. `table`: as the server quotes it, empty if there is none; `key`: columns, quoted."""

    session: psycopg.Connection[Any]
    table: str
    key: tuple[str, ...]


def differences(before: str, after: str, table: str, database: str) -> Iterator[Difference]:
    """See Client."""
    import psycopg

    try:
        with _session(before, database) as one, _session(after, database) as other:
            sides = (_side(one, table), _side(other, table))
            if not any(side.table for side in sides):
                raise UsageError(
                    f"there is no table {table} in database {database} at either moment: say schema.table if it is not"
                    " in the search path, and --database for another database"
                )
            key = sides[0].key if all(side.table for side in sides) else ()
            if any(side.table and side.key != key for side in sides):
                key = ()
            yield from merged(_rows(sides[0], key, "before"), _rows(sides[1], key, "after"))
    except psycopg.Error as error:
        raise AuroraError(str(error).strip().replace("\n", " ")) from error


def _session(dsn: str, database: str) -> psycopg.Connection[Any]:
    import psycopg

    return psycopg.connect(
        dsn, dbname=database, options=_SETTINGS, client_encoding="utf8", connect_timeout=CONNECT_TIMEOUT_S
    )


def _side(session: psycopg.Connection[Any], table: str) -> _Side:
    found = session.execute(_TABLE, (table,)).fetchone()
    if found is None:
        return _Side(session, "", ())
    name, kind = found
    if kind not in _COMPARABLE:
        raise UsageError(f"{table} is no table: its rows cannot be compared")
    key = session.execute(_KEY, (table,)).fetchone()
    return _Side(session, name, tuple(key[0]) if key is not None else ())


def _rows(side: _Side, key: tuple[str, ...], name: str) -> Iterator[tuple[bytes, str]]:
    if not side.table:
        return
    by = f"ROW({', '.join(f'_t.{column}' for column in key)})::text" if key else "to_json(_t)::text"
    with side.session.cursor(name=name, withhold=False) as cursor:
        cursor.itersize = BATCH
        statement = f"SELECT convert_to({by}, 'UTF8'), to_json(_t)::text FROM {side.table} AS _t ORDER BY 1"  # noqa: S608
        cursor.execute(statement.encode())
        yield from cursor
