"""One round's history: recorded under a fault, completed by a last look at everything, and judged."""

import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb

from tests.chaos.clients import Client, Connect
from tests.chaos.recorder import Recorder
from tests.chaos.watching import Snapshots, Watcher
from tests.chaos.workload import CLIENTS, OPENING_BALANCE, Keys, perform
from tests.histories.check import Unknown, check, settle
from tests.histories.lists import understand
from tests.histories.model import Anomaly, Append, History, Op, Outcome, Read, ReadList, Write
from tests.histories.rewinds import still_seen
from tests.histories.snapshots import Snapshot, check_snapshots
from tests.support.polling import poll_until_blocking

SHOWN_MAX = 12
WATCHERS = 2
LAST_LOOK_TIMEOUT_S = 60.0


class WrongHistoryError(AssertionError):
    """No serial order explains what the clients saw."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A round that passed: transactions by outcome, and how the unknown ones turned out."""

    ok: int
    failed: int
    unknown: Unknown
    outage_s: float
    check_s: float
    snapshots: int = 0  # that readers showed


class Memory:
    """What earlier rounds left behind: it must stay so for ever. Only what was unknown may still be added."""

    def __init__(self, next_id: int = 1) -> None:
        self.next_id = next_id
        self._known: dict[str, tuple[int, ...]] = {}
        self._late: dict[str, set[int]] = {}
        self._newest: list[list[str]] = []

    def learn(self, history: History) -> None:
        """Takes in a history that was found right, and whose last transactions have read everything."""
        lists = understand(history)
        registers = {op.key: op.value for txn in history.txns for op in txn.ops if isinstance(op, Read) and op.answered}
        found = dict(lists.order) | {key: () if value is None else (value,) for key, value in registers.items()}
        self._known |= found
        self._newest = [*self._newest[-3:], list(found)]
        for txn in history.txns:
            for op in txn.ops if txn.outcome is Outcome.INFO else ():
                if isinstance(op, Append | Write):
                    self._late.setdefault(op.key, set()).add(op.value)

    def check(self, session: psycopg.Connection, *, everything: bool = False) -> int:
        """Compares the latest rounds, or all; how many lists and registers that were. Raises WrongHistoryError."""
        keys = list(self._known) if everything else [key for keys in self._newest for key in keys]
        there: dict[str, tuple[int, ...]] = {}
        for query in (
            "SELECT key, vals FROM lists WHERE key = ANY(%s)",
            "SELECT key, entries FROM accounts WHERE key = ANY(%s)",
            "SELECT key, ARRAY[value] FROM registers WHERE key = ANY(%s)",
        ):
            there.update((key, tuple(values)) for key, values in session.execute(query, (keys,)))
        for key in keys:
            self._compare(key, self._known[key], there.get(key, ()))
        return len(keys)

    def _compare(self, key: str, known: tuple[int, ...], now: tuple[int, ...]) -> None:
        late = self._late.get(key, set())
        if now == known or (key.startswith("r") and set(now) <= late):
            return
        if now[: len(known)] != known or not set(now[len(known) :]) <= late or len(set(now)) < len(now):
            raise WrongHistoryError(f"{key} was {known} at the end of its round and is {now} now")


class HistoryRound:
    """The clients of one round. `path` is where its history goes; with `watch` some read by that as well."""

    def __init__(
        self,
        connect: Connect,
        path: Path,
        *,
        seed: int,
        number: int,
        fault: str,
        memory: Memory,
        watch: Connect | None = None,
    ) -> None:
        self._connect = connect
        self._memory = memory
        self._keys = Keys(number)
        accounts = dict.fromkeys(self._keys.accounts, OPENING_BALANCE)
        header: dict[str, object] = {"seed": seed, "round": number, "fault": fault}
        self.recorder = Recorder(path, header, accounts, memory.next_id)
        self._snapshots = Snapshots()
        self._clients: list[Client] = [
            kind(f"{kind.__name__} {place}", connect, f"{seed}:{number} {place}", self._keys, self.recorder)
            for place, kind in enumerate(CLIENTS)
        ]
        for place in range(WATCHERS if watch is not None else 0):
            name, seed_ = f"watcher {place}", f"{seed}:{number} watcher {place}"
            assert watch is not None
            self._clients.append(
                Watcher(name, watch, seed_, keys=self._keys, recorder=self.recorder, snapshots=self._snapshots)
            )

    def prepare(self, session: psycopg.Connection) -> None:
        """Opens the accounts; may be tried again."""
        session.execute(
            "INSERT INTO accounts SELECT jsonb_array_elements_text(%s), %s, '{}' ON CONFLICT DO NOTHING",
            (Jsonb(self._keys.accounts), OPENING_BALANCE),
        )

    def start(self) -> None:
        """Begins."""
        for client in self._clients:
            client.start()

    def look_at_clone(self, session: psycopg.Connection, asked_ns: int) -> None:
        """What a clone shows is a snapshot like a reader's, with all that was acknowledged before it was asked for.
        Raises WrongHistoryError."""
        with session.transaction():
            session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            reads = [perform(session, ReadList(key)) for key in [*self._keys.lists, *self._keys.accounts]]
        values = {read.key: read.values or () for read in reads if isinstance(read, ReadList)}
        self._snapshots.add(Snapshot(f"a clone of {asked_ns}", time.monotonic_ns(), values))
        for txn in self.recorder.acknowledged(asked_ns):
            for op in txn.ops:
                if isinstance(op, Append) and op.key in values and op.value not in values[op.key]:
                    raise WrongHistoryError(f"a clone lacks {op} of {txn.name}, which was acknowledged before it")

    def stop(self, patience_s: float) -> None:
        """Ends all clients; see Client.join."""
        for client in self._clients:
            client.ask_to_stop()
        for client in self._clients:
            client.join(patience_s)

    def close(self) -> None:
        """Ends clients that still run; the file is whole then."""
        try:
            self.stop(0)
        finally:
            self.recorder.close()

    def judge(self) -> Verdict:
        """The last look, and what to make of it all. Raises WrongHistoryError."""
        poll_until_blocking(self._last_look, LAST_LOOK_TIMEOUT_S, interval_s=0.2, what="a last look at everything")
        poll_until_blocking(self._earlier_stays, LAST_LOOK_TIMEOUT_S, interval_s=0.2, what="a look at earlier rounds")
        self._memory.next_id = self.recorder.next_id
        if self.recorder.odd_errors:
            raise WrongHistoryError("; ".join(self.recorder.odd_errors[:SHOWN_MAX]))
        begun_s = time.monotonic()
        history = self.recorder.history()
        snapshots = still_seen(self._snapshots.all(), self.recorder.rewinds)
        anomalies = check(history) + check_snapshots(history, snapshots)
        if anomalies:
            raise WrongHistoryError(_tell(anomalies, self.recorder.path))
        self._memory.learn(history)
        outcomes = [txn.outcome for txn in history.txns]
        return Verdict(
            outcomes.count(Outcome.OK),
            outcomes.count(Outcome.FAIL),
            settle(history),
            round(self.recorder.outage_s(), 2),
            round(time.monotonic() - begun_s, 2),
            len(snapshots),
        )

    def _last_look(self) -> bool:
        """False if the session was lost: the fleet may still be at work."""
        everything: tuple[Op, ...] = tuple(map(ReadList, [*self._keys.lists, *self._keys.accounts]))
        looks = [everything, *((Read(key),) for key in self._keys.registers)]
        for ops in looks:
            id_ = self.recorder.reserve_id()
            self.recorder.begin(id_, "last look", ops)
            try:
                with self._connect() as session, session.transaction():
                    done = tuple(perform(session, op) for op in ops)
            except (psycopg.OperationalError, psycopg.errors.SerializationFailure) as error:
                self.recorder.end(id_, Outcome.FAIL, ops, error)
                return False
            self.recorder.end(id_, Outcome.OK, done)
        return True

    def _earlier_stays(self) -> bool:
        try:
            with self._connect() as session:
                self._memory.check(session)
        except psycopg.OperationalError:
            return False
        return True


def _tell(anomalies: list[Anomaly], path: Path) -> str:
    shown = "\n".join(str(anomaly) for anomaly in anomalies[:SHOWN_MAX])
    return f"{len(anomalies)} anomalies in {path} (python -m tests.histories check FILE):\n{shown}"
