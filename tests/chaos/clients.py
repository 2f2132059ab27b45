# ruff: noqa: S608 - all names and values in the statements are made here
"""Client threads: transfers between accounts as fast as they go, and the churn of tables made, filled and dropped."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from tests.chaos.ledger import Ledger, Outcome, Transfer

ACCOUNTS = 100
Connect = Callable[[], psycopg.Connection]
JOIN_TIMEOUT_S = 30.0

SCHEMA = f"""
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE transfers (id bigint PRIMARY KEY, source int, target int, amount int, note text);
    CREATE INDEX transfers_by_note ON transfers (substr(note, 1, 20));
    CREATE INDEX transfers_by_source ON transfers (source, id);
    INSERT INTO accounts SELECT id, 0 FROM generate_series(0, {ACCOUNTS - 1}) id
"""


class Client:
    """One thread with one session, which it opens again whenever it is lost, until told to stop."""

    def __init__(self, name: str, connect: Connect, seed: str) -> None:
        self.random = random.Random(seed)
        self.errors: list[Exception] = []
        self._connect = connect
        self._session: psycopg.Connection | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """No further transaction."""
        self._ending.set()

    def join(self, patience_s: float) -> None:
        """Waits for the transaction at hand; one that outlasts `patience_s` is cut off (its outcome is unknown)."""
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self.cut()
            self._thread.join(JOIN_TIMEOUT_S)
        assert not self._thread.is_alive(), f"{self._thread.name} hangs"
        if self.errors:
            raise self.errors[0]

    def cut(self) -> None:
        """Cuts the session's connection, as a broken network would."""
        session = self._session
        if session is not None and not session.closed:
            with contextlib.suppress(OSError, psycopg.Error):
                descriptor = socket.socket(fileno=session.fileno())
                try:
                    descriptor.shutdown(socket.SHUT_RDWR)
                finally:
                    descriptor.detach()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                with contextlib.suppress(psycopg.Error), self._connect() as session:
                    self._session = session
                    while not self._ending.is_set():
                        self.step(session)
                self._ending.wait(0.02)
        except Exception as error:  # raised again by `join`
            self.errors.append(error)

    def step(self, session: psycopg.Connection) -> None:
        """One piece of work. May raise psycopg.Error, after which the session is opened anew."""
        raise NotImplementedError


class TransferClient(Client):
    """Moves money, a row a transfer, now and then a long one (out of line) and now and then a rollback."""

    def __init__(self, name: str, connect: Connect, seed: str, ledger: Ledger) -> None:
        super().__init__(name, connect, seed)
        self._ledger = ledger

    def step(self, session: psycopg.Connection) -> None:
        """One transfer."""
        choose = self.random
        source, target = choose.sample(range(ACCOUNTS), 2)
        transfer = Transfer(self._ledger.next_id(), source, target, choose.randrange(1, 1000))
        length = choose.choice((0, 10, 100, 400)) if choose.random() < 0.97 else 20_000
        outcome = Outcome.NEVER
        try:
            session.execute(_statements(transfer, length, choose))
            if choose.random() < 0.02:
                session.execute("ROLLBACK")
                return
            outcome = Outcome.UNKNOWN
            cursor = session.execute("COMMIT")
            if cursor.statusmessage == "COMMIT":
                outcome = Outcome.ACKED
        finally:
            self._ledger.note(transfer, outcome)


def _statements(transfer: Transfer, length: int, choose: random.Random) -> bytes:
    """Simple protocol, all in one message; accounts in ascending order, so that transfers never deadlock."""
    changes = sorted([(transfer.source, -transfer.amount), (transfer.target, transfer.amount)])
    # Not compressible, so that long ones really go out of line.
    note = choose.randbytes(length // 2).hex()
    values = f"{transfer.id}, {transfer.source}, {transfer.target}, {transfer.amount}, '{note}'"
    return "; ".join(
        [
            "BEGIN",
            f"INSERT INTO transfers VALUES ({values})",
            *(f"UPDATE accounts SET balance = balance + {delta} WHERE id = {account}" for account, delta in changes),
        ]
    ).encode()


@dataclass
class Tables:
    """What the churn knows: for each table the numbers of rows that it may have; None if it may be missing."""

    possible: dict[str, set[int | None]] = field(default_factory=dict)
    may_be_taken_back: bool = False  # then what was possible stays so

    def note(self, name: str, rows: int | None, *, certain: bool) -> None:
        """It has so many rows now, or perhaps."""
        others = self.possible.get(name, {None})
        self.possible[name] = {rows} if certain and not self.may_be_taken_back else {*others, rows}


class ChurnClient(Client):
    """Makes, fills, empties and drops tables, vacuums and checkpoints: all that moves files rather than pages."""

    def __init__(
        self, name: str, connect: Connect, seed: str, tables: Tables, upkeep: tuple[bytes, ...] | None = None
    ) -> None:
        super().__init__(name, connect, seed)
        self._tables = tables
        self._upkeep = upkeep or _UPKEEP
        self._prefix = "churn_" + "".join(self.random.choices("abcdefghijklmnop", k=12))
        self._made = 0

    def step(self, session: psycopg.Connection) -> None:
        """One statement or small transaction."""
        choose = self.random
        there = [name for name, rows in self._tables.possible.items() if None not in rows]
        kind = choose.choices(
            ("make", "drop", "refill", "keep"), (4, 3 if len(there) > 2 else 0, 2 if there else 0, 3)
        )[0]
        if kind == "make":
            self._made += 1
            name = f"{self._prefix}_{self._made}"
            rows = choose.randrange(1, 3000)
            self._do(
                session, name, rows, f"CREATE TABLE {name} AS {_rows(rows)}", f"ALTER TABLE {name} ADD PRIMARY KEY (id)"
            )
        elif kind == "drop":
            name = choose.choice(there)
            self._do(session, name, None, f"DROP TABLE {name}")
        elif kind == "refill":
            name = choose.choice(there)
            rows = choose.randrange(1, 500)
            self._do(session, name, rows, f"TRUNCATE {name}", f"INSERT INTO {name} {_rows(rows)}")
        else:
            session.execute(choose.choice(self._upkeep))

    def _do(self, session: psycopg.Connection, name: str, rows: int | None, *statements: str) -> None:
        self._tables.note(name, rows, certain=False)
        session.execute("; ".join(["BEGIN", *statements]).encode())
        if session.execute("COMMIT").statusmessage == "COMMIT":
            self._tables.note(name, rows, certain=True)


_UPKEEP = (
    b"CHECKPOINT", b"VACUUM transfers", b"VACUUM FULL accounts", b"VACUUM pg_class", b"SELECT pg_switch_wal()",
    b"ANALYZE", b"REINDEX TABLE accounts", b"CREATE TEMP TABLE scratch AS SELECT * FROM accounts; DROP TABLE scratch",
)  # fmt: skip


def _rows(count: int) -> str:
    return f"SELECT id, md5(id::text) AS text FROM generate_series(1, {count}) id"


class Load:
    """Several transfer clients and one that churns; used as a context."""

    def __init__(self, connect: Connect, seed: str, ledger: Ledger, tables: Tables, clients: int) -> None:
        self._ledger = ledger
        self._clients: list[Client] = [
            TransferClient(f"transfers {number}", connect, f"{seed} transfers {number}", ledger)
            for number in range(clients)
        ]
        self._clients.append(ChurnClient("churn", connect, f"{seed} churn", tables))

    def start(self) -> None:
        """Begins."""
        for client in self._clients:
            client.start()

    def stop(self, patience_s: float) -> None:
        """Ends all; see Client.join."""
        for client in self._clients:
            client.ask_to_stop()
        for client in self._clients:
            client.join(patience_s)

    @property
    def acked_count(self) -> int:
        """Commits confirmed so far, in all rounds."""
        return self._ledger.acked_count
