"""Clients whose histories can be judged: lists, accounts, registers, all SERIALIZABLE, retried when told to.

Each round has keys of its own, so that its history can be judged by itself. A list is followed by a new one when it is
some tens of values long; registers and accounts last for the round. Values are made of the transaction's id, so each is
written once, and a retry is another transaction with other values.
"""

import random
import threading

import psycopg
from psycopg.errors import DeadlockDetected, SerializationFailure

from tests.chaos.clients import Client, Connect
from tests.chaos.recorder import Recorder
from tests.histories.model import Append, Op, Outcome, Read, ReadList, Write

SCHEMA = """
    CREATE TABLE lists (key text PRIMARY KEY, vals bigint[] NOT NULL);
    CREATE TABLE accounts (key text PRIMARY KEY, balance bigint NOT NULL, entries bigint[] NOT NULL);
    CREATE TABLE registers (key text PRIMARY KEY, value bigint NOT NULL)
"""
SESSION = {
    "default_transaction_isolation": "serializable",
    "enable_seqscan": "off",  # predicate locks are as coarse as the plan: every two transactions would conflict
    "deadlock_timeout": "50ms",  # deadlocks are wanted, standing still is not
}
SESSION_OPTIONS = " ".join(f"-c {name}={value}" for name, value in SESSION.items())

# What a churning client does to the tables meanwhile, besides making and dropping others.
UPKEEP = (
    b"CHECKPOINT", b"VACUUM lists", b"VACUUM FULL accounts", b"VACUUM pg_class", b"SELECT pg_switch_wal()",
    b"ANALYZE", b"REINDEX TABLE registers",
)  # fmt: skip

OPENING_BALANCE = 1000
ACCOUNTS = 6
ACTIVE_LISTS = 5
LIST_LENGTH = 32
REGISTERS = 3
VALUES_PER_TXN = 16
RETRIES = 4

APPEND = "INSERT INTO lists VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET vals = lists.vals || excluded.vals"
LIST = "SELECT vals FROM lists WHERE key = %s"
ENTER = """
    UPDATE accounts SET balance = balance + %s, entries = entries || %s::bigint
    WHERE key = %s AND balance + %s >= 0
"""
ACCOUNT = "SELECT entries, balance FROM accounts WHERE key = %s"
SET = "INSERT INTO registers VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
GET = "SELECT value FROM registers WHERE key = %s"


class Keys:
    """The keys of a round, for all its clients."""

    def __init__(self, round_: int) -> None:
        self.accounts = [f"a{round_}.{number}" for number in range(ACCOUNTS)]
        self.registers = [f"r{round_}.{number}" for number in range(REGISTERS)]
        self._round = round_
        self._lock = threading.Lock()
        self._made = 0
        self._active: dict[str, int] = {}

    def a_list(self, choose: random.Random, *, appends: bool) -> str:
        """One of those in use; its successor takes its place when it has been chosen for enough appends."""
        with self._lock:
            while len(self._active) < ACTIVE_LISTS:
                self._active[f"l{self._round}.{self._made}"] = 0
                self._made += 1
            key = choose.choice(list(self._active))
            self._active[key] += appends
            if self._active[key] >= LIST_LENGTH:
                del self._active[key]
            return key

    @property
    def lists(self) -> list[str]:
        """All that there ever were."""
        return [f"l{self._round}.{number}" for number in range(self._made)]


class ToldToRollBackError(Exception):
    """There is not enough money."""


class HistoryClient(Client):
    """Does transactions as `plan` makes them, and has all of them written down."""

    def __init__(self, name: str, connect: Connect, seed: str, keys: Keys, recorder: Recorder) -> None:
        super().__init__(name, connect, seed)
        self.name = name
        self.keys = keys
        self._recorder = recorder

    def plan(self, choose: random.Random, value: int) -> tuple[Op, ...]:
        """The next transaction's operations; values from `value` on are its own."""
        raise NotImplementedError

    def step(self, session: psycopg.Connection) -> None:
        """One transaction, and again with other values when the server says so."""
        shape = self.random.random()
        for _ in range(RETRIES):
            id_ = self._recorder.reserve_id()
            ops = self.plan(random.Random(shape), id_ * VALUES_PER_TXN)
            try:
                if len(ops) == 1:
                    self._single(session, id_, ops[0])
                else:
                    self._transaction(session, id_, ops)
            except (SerializationFailure, DeadlockDetected):
                continue
            except psycopg.Error as error:
                self._recorder.note_error(self.name, error)
                raise
            return

    def _transaction(self, session: psycopg.Connection, id_: int, ops: tuple[Op, ...]) -> None:
        """COMMIT goes by itself: before it is sent, nothing can have happened; then nobody knows until the answer."""
        done: tuple[Op, ...] = ()
        outcome = Outcome.FAIL
        self._recorder.begin(id_, self.name, ops)
        try:
            session.execute("BEGIN")
            for op in ops:
                done += (perform(session, op),)
            last = b"ROLLBACK" if self.random.random() < 0.02 else b"COMMIT"
            outcome = Outcome.INFO if last == b"COMMIT" else Outcome.FAIL
            tag = session.execute(last).statusmessage
        except (SerializationFailure, DeadlockDetected, ToldToRollBackError) as error:
            self._recorder.end(id_, Outcome.FAIL, ops, error)
            session.execute("ROLLBACK")
            if not isinstance(error, ToldToRollBackError):
                raise
        except Exception as error:
            self._recorder.end(id_, outcome, done + ops[len(done) :], error)
            raise
        else:
            self._recorder.end(id_, Outcome.OK if tag == "COMMIT" else Outcome.FAIL, done)

    def _single(self, session: psycopg.Connection, id_: int, op: Op) -> None:
        """One statement, which commits by itself."""
        self._recorder.begin(id_, self.name, (op,))
        try:
            done = perform(session, op)
        except (SerializationFailure, DeadlockDetected) as error:
            self._recorder.end(id_, Outcome.FAIL, (op,), error)
            raise
        except Exception as error:
            outcome = Outcome.INFO if isinstance(op, Append | Write) else Outcome.FAIL
            self._recorder.end(id_, outcome, (op,), error)
            raise
        self._recorder.end(id_, Outcome.OK, (done,))


def perform(session: psycopg.Connection, op: Op) -> Op:
    """Does it; what it looks like with the answer. Accounts are told from other lists by their names."""
    if isinstance(op, Append):
        if op.key.startswith("a"):
            parameters = (op.amount, op.value, op.key, op.amount)
            if session.execute(ENTER, parameters).rowcount != 1:
                raise ToldToRollBackError("there is not enough money")
        else:
            session.execute(APPEND, (op.key, [op.value]))
        return op
    if isinstance(op, Write):
        session.execute(SET, (op.key, op.value))
        return op
    if isinstance(op, Read):
        row = session.execute(GET, (op.key,)).fetchone()
        return Read(op.key, row[0] if row else None)
    if op.key.startswith("a"):
        row = session.execute(ACCOUNT, (op.key,)).fetchone()
        return ReadList(op.key, tuple(row[0]), row[1]) if row else ReadList(op.key, ())
    row = session.execute(LIST, (op.key,)).fetchone()
    return ReadList(op.key, tuple(row[0]) if row else ())


class ListClient(HistoryClient):
    """Appends to lists and reads them, often once, else a few times in a transaction."""

    def plan(self, choose: random.Random, value: int) -> tuple[Op, ...]:
        ops: list[Op] = []
        for number in range(choose.choice((1, 1, 1, 2, 3, 4))):
            appends = choose.random() < 0.6
            key = self.keys.a_list(choose, appends=appends)
            ops.append(Append(key, value + number) if appends else ReadList(key))
        return tuple(ops)


class BankClient(HistoryClient):
    """Transfers, some after a look at both accounts; now and then it reads all accounts."""

    def plan(self, choose: random.Random, value: int) -> tuple[Op, ...]:
        if choose.random() < 0.05:
            return tuple(map(ReadList, self.keys.accounts))
        source, target = choose.sample(self.keys.accounts, 2)
        amount = choose.randrange(1, 50)
        looks = (ReadList(source), ReadList(target)) if choose.random() < 0.4 else ()
        return (*looks, Append(source, value, -amount), Append(target, value, amount))


class RegisterClient(HistoryClient):
    """Sets registers and reads them, one statement each."""

    def plan(self, choose: random.Random, value: int) -> tuple[Op, ...]:
        key = choose.choice(self.keys.registers)
        return (Write(key, value) if choose.random() < 0.5 else Read(key),)


class ReaderClient(HistoryClient):
    """Never writes."""

    def plan(self, choose: random.Random, value: int) -> tuple[Op, ...]:
        kind = choose.random()
        if kind < 0.4:
            return (Read(choose.choice(self.keys.registers)),)
        if kind < 0.5:
            return tuple(map(ReadList, self.keys.accounts))
        return tuple(ReadList(self.keys.a_list(choose, appends=False)) for _ in range(choose.randrange(1, 4)))


CLIENTS: tuple[type[HistoryClient], ...] = (
    ListClient, BankClient, RegisterClient, ReaderClient, ListClient, BankClient, RegisterClient, ListClient,
)  # fmt: skip
