"""The rounds themselves, in small: a few pass, and what they look for is found when it is there."""

import time
from collections.abc import Callable

import psycopg
import pytest

from tests.chaos.checks import LostError, check_indexes, check_own_sums, check_tables, check_transfers
from tests.chaos.conftest import MakeStack
from tests.chaos.ledger import Ledger, Outcome, Transfer
from tests.chaos.rounds import NODE_OPTIONS, Chaos

pytestmark = pytest.mark.postgres

Harm = Callable[[psycopg.Connection, Chaos], None]


def forget_a_commit(session: psycopg.Connection, chaos: Chaos) -> None:
    chaos.ledger.note(Transfer(chaos.ledger.next_id(), 1, 2, 5), Outcome.ACKED)


def lose_a_row(session: psycopg.Connection, chaos: Chaos) -> None:
    session.execute("DELETE FROM transfers WHERE id = (SELECT max(id) FROM transfers)")


def apply_half(session: psycopg.Connection, chaos: Chaos) -> None:
    session.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 7")


def bring_back_a_rollback(session: psycopg.Connection, chaos: Chaos) -> None:
    transfer = Transfer(chaos.ledger.next_id(), 1, 2, 5)
    chaos.ledger.note(transfer, Outcome.NEVER)
    session.execute("INSERT INTO transfers VALUES (%s, 1, 2, 5, '')", [transfer.id])


def empty_a_table(session: psycopg.Connection, chaos: Chaos) -> None:
    name = next(name for name, rows in chaos.tables.possible.items() if None not in rows)
    session.execute(f"TRUNCATE {name}".encode())


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_rounds_pass_and_notice_harm(make_stack: MakeStack) -> None:
    stack = make_stack(node_options=NODE_OPTIONS)
    chaos = Chaos(stack, 1, clients=4, pause=time.sleep)  # not synchronisation: load runs meanwhile
    chaos.prepare()
    assert chaos.run_round(1, "power_cut").acked > 0
    assert chaos.run_round(2, "kill_zone_and_writer").acked > 0
    with stack.connect() as session:
        session.execute("CREATE TABLE churn_x AS SELECT id, md5(id::text) AS text FROM generate_series(1, 10) id")
        chaos.tables.possible["churn_x"] = {10}
        for harm in (forget_a_commit, lose_a_row, apply_half, bring_back_a_rollback, empty_a_table):
            with session.transaction(force_rollback=True):
                ledger, chaos.ledger = chaos.ledger, chaos.ledger.copy()
                harm(session, chaos)
                with pytest.raises(LostError):
                    check_all(session, chaos)
                chaos.ledger = ledger
        check_all(session, chaos)
    chaos.close()


def check_all(session: psycopg.Connection, chaos: Chaos) -> None:
    check_transfers(session, chaos.ledger)
    check_tables(session, chaos.tables)
    check_own_sums(session)
    check_indexes(session)


def test_a_ledger_settles_what_was_unknown(make_stack: MakeStack) -> None:
    ledger = Ledger(make_stack().directory / "ledger", accounts=3)
    kept, gone = (Transfer(ledger.next_id(), 0, 2, amount) for amount in (5, 7))
    ledger.note(kept, Outcome.UNKNOWN)
    ledger.note(gone, Outcome.UNKNOWN)
    ledger.settle({kept.id})
    assert ledger.balances == [-5, 0, 5]
    assert (ledger.present, ledger.absent) == ({kept.id}, {gone.id})
    assert ledger.new(Outcome.UNKNOWN) == []
    ledger.close()
