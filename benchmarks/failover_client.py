"""What a client sees of a failover: one that writes one row after the other, beside pgbench's load.

The outage is the time between the last acknowledgement before a fault and the first one after it, as this client had
them. It gives up a connection attempt after two seconds (the least that libpq allows), and tries again at once.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import IO, Final, Self

import psycopg

CONNECT_TIMEOUT_S: Final = 2
PAUSE_S: Final = 0.01  # between two writes, and before another attempt
CALM_S: Final = 1.0  # so long there must be acknowledgements again, none of them late
LATE_S: Final = 0.5
LOAD_PAUSE_S: Final = 0.25  # before pgbench is started again
_POLL_S: Final = 0.05
_TABLE: Final = "failover_acks"


@dataclass(frozen=True, slots=True)
class Outage:
    """Unix times in seconds: the last acknowledgement before, the first one after."""

    last_s: float
    first_s: float

    @property
    def seconds(self) -> float:
        """How long nothing was acknowledged."""
        return self.first_s - self.last_s


class Client:
    """Writes rows with ascending numbers from `with` to the end of the block."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._acks: list[tuple[float, int]] = []  # Unix time in seconds, number
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failover client", daemon=True)

    def __enter__(self) -> Self:
        with psycopg.connect(self._dsn, autocommit=True, connect_timeout=30) as session:
            session.execute(f"DROP TABLE IF EXISTS {_TABLE}".encode())
            session.execute(f"CREATE TABLE {_TABLE} (number bigint PRIMARY KEY)".encode())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)

    def wait_outage(self, fault_s: float, timeout_s: float) -> Outage:
        """The outage that a fault at `fault_s` (Unix time) caused, once writing is calm again. Raises TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
            times = [at_s for at_s, _ in self._acks]
            gaps = [Outage(a, b) for a, b in itertools.pairwise(times) if b > fault_s]
            longest = max(gaps, key=lambda gap: gap.seconds, default=None)
            if longest is None or longest.first_s > times[-1] - CALM_S:
                continue
            late = [gap for gap in gaps if gap.first_s > longest.first_s and gap.seconds > LATE_S]
            if not late and time.time() - times[-1] < LATE_S:
                return longest
        raise TimeoutError(f"nothing was acknowledged within {timeout_s:g} s of the fault")

    def lost(self) -> int:
        """How many rows were acknowledged and are not there."""
        acknowledged = {number for _, number in self._acks}
        with psycopg.connect(self._dsn, autocommit=True, connect_timeout=30) as session:
            rows = session.execute(f"SELECT number FROM {_TABLE}".encode()).fetchall()  # noqa: S608
        return len(acknowledged - {number for (number,) in rows})

    def _run(self) -> None:
        session: psycopg.Connection | None = None
        statement = f"INSERT INTO {_TABLE} VALUES (%s)".encode()  # noqa: S608
        for number in itertools.count():
            if self._stopping.is_set():
                break
            try:
                if session is None:
                    session = psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
                session.execute(statement, [number])
                self._acks.append((time.time(), number))
            except psycopg.Error:
                if session is not None:
                    session.close()
                session = None
            self._stopping.wait(PAUSE_S)
        if session is not None:
            session.close()


class PgbenchLoad:
    """TPC-B without a limit on its rate, from `with` to the end of the block; started again whenever it dies."""

    def __init__(self, dsn: str, *, bin_dir: str, clients: int, scale: int) -> None:
        self._dsn = dsn
        options = ["--no-vacuum", "-b", "tpcb-like", "-M", "prepared", "-c", str(clients), "-j", str(min(2, clients))]
        separator = "&" if "?" in dsn else "?"
        limited = f"{dsn}{separator}connect_timeout={CONNECT_TIMEOUT_S}"
        self._command = [f"{bin_dir}/pgbench", *options, "-s", str(scale), "-T", "86400", limited]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failover load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)

    def _run(self) -> None:
        with tempfile.TemporaryFile() as output:
            while not self._stopping.is_set():
                self._run_once(output)
                self._stopping.wait(LOAD_PAUSE_S)

    def _run_once(self, output: IO[bytes]) -> None:
        output.truncate(0)
        child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while child.poll() is None and not self._stopping.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL_S)
        finally:
            child.kill()
            child.wait()
