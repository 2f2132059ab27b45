"""Histories of real clients, in small: one under kills is right, and whatever harms the data shows in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.chaos.history_round import HistoryRound, Memory, WrongHistoryError
from tests.chaos.workload import SCHEMA, SESSION
from tests.support.polling import poll_until_blocking
from tests.support.stack import Stack

pytestmark = pytest.mark.postgres


class Rounds:
    """Rounds on a stack, one after the other. `settings` are those of the clients' sessions besides the usual ones."""

    def __init__(self, stack: Stack, **settings: str) -> None:
        self.stack = stack
        self._settings = SESSION | settings
        self.memory = Memory()
        self.number = 0
        with stack.connect() as session:
            session.execute(SCHEMA.encode())

    @contextmanager
    def next(self) -> Iterator[HistoryRound]:
        """A round at work; it is judged at the end."""
        self.number += 1
        path = self.stack.directory / f"history-{self.number}.jsonl"
        round_ = HistoryRound(self._connect, path, seed=1, number=self.number, fault="", memory=self.memory)
        with self._connect() as session:
            round_.prepare(session)
        round_.start()
        try:
            self.writes(round_, 60)
            yield round_
            self.writes(round_, 60)
            round_.stop(10)
            self.verdict = round_.judge()
        finally:
            round_.close()

    def forget(self) -> None:
        """All earlier rounds."""
        self.memory = Memory(self.memory.next_id)
        with self.stack.connect() as session:
            session.execute("TRUNCATE lists, accounts, registers")

    def writes(self, round_: HistoryRound, count: int) -> None:
        """Waits for so many more."""
        goal = round_.recorder.ok["writes"] + count
        poll_until_blocking(lambda: round_.recorder.ok["writes"] >= goal, 40, what=f"{count} more writes")

    def _connect(self) -> psycopg.Connection:
        session = self.stack.connect(timeout_s=5)
        session.execute("; ".join(f"SET {name} = '{value}'" for name, value in self._settings.items()).encode())
        return session


@pytest.mark.timeout(180)
def test_kills_leave_a_right_history(stack: Stack) -> None:
    rounds = Rounds(stack)
    for _ in range(2):
        with rounds.next():
            stack.writer.kill()
            stack.writer.wait_engine_gone()
            stack.writer.open()
        assert rounds.verdict.ok > 120
    with stack.connect() as session:
        assert rounds.memory.check(session, everything=True) > 10


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_commits_that_were_acknowledged_too_early_are_found(stack: Stack) -> None:
    rounds = Rounds(stack, synchronous_commit="off")
    found = ""
    for _ in range(5):  # whether one is lost is a matter of milliseconds
        try:
            with rounds.next():
                stack.writer.kill()
                stack.writer.wait_engine_gone()
                stack.writer.open()
        except WrongHistoryError as error:
            found = str(error)
            break
    assert "lost append" in found or "stale read" in found, f"nobody noticed: {found}"


HARMS = {
    "a value is lost": "UPDATE lists SET vals = trim_array(vals, 1) WHERE cardinality(vals) > 8",
    "a value is there twice": "UPDATE lists SET vals = vals || vals[1] WHERE cardinality(vals) > 8",
    "values change places": "UPDATE lists SET vals = ARRAY[vals[2], vals[1]] || vals[3:] WHERE cardinality(vals) > 8",
    "money appears": "UPDATE accounts SET balance = balance + 1",
    "half a transfer is undone": "UPDATE accounts SET entries = trim_array(entries, 1) WHERE key LIKE '%.0'",
    "old values come back": "DELETE FROM registers",
}


@pytest.mark.chaos
@pytest.mark.timeout(240)
def test_harm_is_found(stack: Stack) -> None:
    rounds = Rounds(stack)
    for what, harm in HARMS.items():
        rounds.forget()
        found = ""
        try:
            _harmed(rounds, harm)
        except WrongHistoryError as error:
            found = str(error)
        assert "anomalies" in found, f"{what}, and nobody noticed"
    rounds.forget()
    with rounds.next():
        pass
    with stack.connect() as session:
        assert rounds.memory.check(session) > 10
        session.execute("UPDATE lists SET vals = trim_array(vals, 1) WHERE cardinality(vals) > 1")
        with pytest.raises(WrongHistoryError, match="at the end of its round"):
            rounds.memory.check(session)


def _harmed(rounds: Rounds, harm: str) -> None:
    table = next(table for table in ("lists", "accounts", "registers") if table in harm)
    with rounds.next() as round_:
        rounds.writes(round_, 150)
        for _ in range(3):  # a register may be set before anyone has read it
            with rounds.stack.connect() as session, session.transaction():
                session.execute(f"LOCK TABLE {table}".encode())
                assert session.execute(harm.encode()).rowcount > 0
            rounds.writes(round_, 30)
