"""Read-only clients of the reader endpoint: what they see is judged beside the history (tests.histories.snapshots)."""

import itertools
import threading
import time

import psycopg

from tests.chaos.clients import Client, Connect
from tests.chaos.recorder import Recorder
from tests.chaos.workload import Keys, perform
from tests.histories.model import ReadList
from tests.histories.snapshots import Snapshot

SNAPSHOTS_MAX = 20_000
_sessions = itertools.count(1)


class Snapshots:
    """Of all watchers of a round."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: list[Snapshot] = []

    def add(self, snapshot: Snapshot) -> None:
        """One more; beyond SNAPSHOTS_MAX nothing."""
        with self._lock:
            if len(self._taken) < SNAPSHOTS_MAX:
                self._taken.append(snapshot)

    def all(self) -> list[Snapshot]:
        """Those so far."""
        with self._lock:
            return list(self._taken)


class Watcher(Client):
    """Reads all accounts, or some of the lists in use, in one transaction; a session reads many times."""

    def __init__(
        self, name: str, connect: Connect, seed: str, *, keys: Keys, recorder: Recorder, snapshots: Snapshots
    ) -> None:
        super().__init__(name, connect, seed)
        self._name = name
        self._keys = keys
        self._recorder = recorder
        self._snapshots = snapshots
        self._session_of: tuple[psycopg.Connection | None, str] = (None, "")

    def step(self, session: psycopg.Connection) -> None:
        """One snapshot."""
        if self._session_of[0] is not session:
            self._session_of = session, f"{self._name}/{next(_sessions)}"
        newest = self._keys.lists[-10:]
        keys = self._keys.accounts if self.random.random() < 0.5 else newest
        values: dict[str, tuple[int, ...]] = {}
        try:
            with session.transaction():
                for key in keys:
                    read = perform(session, ReadList(key))
                    assert isinstance(read, ReadList)
                    values[key] = read.values or ()
        except psycopg.Error as error:
            self._recorder.note_error(self._name, error)
            raise
        snapshot = Snapshot(self._session_of[1], time.monotonic_ns(), values)
        self._snapshots.add(snapshot)
        self._recorder.note_snapshot(snapshot.session, values)
