# ruff: noqa: S608 - all names in the statements are made by the clients
"""What must be true of the database after every round, whatever was killed in it."""

import psycopg

from tests.chaos.clients import ACCOUNTS, Tables
from tests.chaos.ledger import Ledger, Outcome


class LostError(AssertionError):
    """The database does not show what it must, or shows what it must not."""


def check_transfers(session: psycopg.Connection, ledger: Ledger) -> int:
    """Every acknowledged transfer is there, none that never happened is, and none is half there; how many there are.

    The balances must be exactly those that the rows there make up. Afterwards the ledger knows the unknown ones.
    """
    _scan(session, sequential=True)
    seen = {row[0] for row in session.execute("SELECT id FROM transfers")}
    acked = {transfer.id for transfer in ledger.new(Outcome.ACKED)}
    never = {transfer.id for transfer in ledger.new(Outcome.NEVER)}
    unknown = {transfer.id for transfer in ledger.new(Outcome.UNKNOWN)}
    _none(acked - seen, "acknowledged transfers are lost")
    _none(never & seen, "transfers that were never committed are there")
    _none(ledger.present - seen, "transfers that were there in an earlier round are lost")
    _none(ledger.absent & seen, "transfers that were not there in an earlier round have appeared")
    _none(seen - ledger.present - acked - unknown, "transfers that nobody made are there")
    ledger.settle(seen)
    balances = [row[0] for row in session.execute("SELECT balance FROM accounts ORDER BY id")]
    if balances != ledger.balances or len(balances) != ACCOUNTS:
        wrong = [(i, a, b) for i, (a, b) in enumerate(zip(balances, ledger.balances, strict=True)) if a != b]
        raise LostError(f"balances do not match the transfers there (account, is, should be): {wrong[:10]}")
    return len(seen)


def check_own_sums(session: psycopg.Connection) -> None:
    """The balances are those that the transfers there make up: true at any moment, whoever asks."""
    query = """
        SELECT id, balance, coalesce(sum(change), 0) FROM accounts
        LEFT JOIN (SELECT source AS id, -amount AS change FROM transfers
                   UNION ALL SELECT target, amount FROM transfers) AS changes USING (id)
        GROUP BY id, balance HAVING balance <> coalesce(sum(change), 0)
    """
    wrong = session.execute(query).fetchall()
    if wrong:
        raise LostError(f"balances do not match the transfers there (account, is, should be): {wrong[:10]}")


def check_tables(session: psycopg.Connection, tables: Tables) -> None:
    """Each table of the churn has one of the contents that it may have, whole."""
    query = "SELECT relname FROM pg_class WHERE relname LIKE 'churn_%' AND relkind = 'r'"
    there = {str(row[0]) for row in session.execute(query)}
    _none(there - tables.possible.keys(), "tables that nobody made are there")
    for name, possible in list(tables.possible.items()):
        rows: int | None = None
        if name in there:
            row = session.execute(f"SELECT count(*), sum(id), count(DISTINCT text) FROM {name}".encode()).fetchone()
            assert row is not None
            rows = row[0]
            if row[1:] != (rows * (rows + 1) // 2, rows):
                raise LostError(f"table {name} has wrong rows: {row}")
        if rows not in possible:
            raise LostError(f"table {name} has {rows} rows (None: is not there), possible are {possible}")
        if rows is None:
            del tables.possible[name]
        else:
            tables.possible[name] = {rows}


def check_indexes(session: psycopg.Connection) -> None:
    """Every index of ours shows what its table holds: amcheck where the engine has it, and by queries in any case."""
    queries = (
        "SELECT count(*), sum(hashtext(transfers::text)::numeric) FROM transfers WHERE id >= 0",
        "SELECT count(*), sum(id) FROM transfers WHERE source >= 0",
        "SELECT count(*), sum(id) FROM transfers WHERE substr(note, 1, 20) >= ''",
        "SELECT count(*), sum(balance) FROM accounts WHERE id >= 0",
    )
    for query in queries:
        answers = []
        for sequential in (True, False):
            _scan(session, sequential=sequential)
            answers.append(session.execute(query.encode()).fetchone())
        if answers[0] != answers[1]:
            raise LostError(f"a table and its index differ, {answers[0]} and {answers[1]}: {query}")
    session.execute("RESET ALL")


def _scan(session: psycopg.Connection, *, sequential: bool) -> None:
    session.execute(f"SET enable_seqscan = {sequential}".encode())
    session.execute(f"SET enable_indexscan = {not sequential}".encode())
    session.execute(f"SET enable_indexonlyscan = {not sequential}".encode())
    session.execute("SET enable_bitmapscan = off")


def _none(ids: set[int] | set[str], complaint: str) -> None:
    if ids:
        raise LostError(f"{len(ids)} {complaint}, for example {sorted(ids)[:10]}")
