"""A client that writes all the time, wherever the writer is, and knows what was acknowledged to it and when."""

import contextlib
import itertools
import socket
import threading
import time
from typing import Self

import psycopg

CONNECT_TIMEOUT_S = 2  # the least that libpq allows
STATEMENT_TIMEOUT_S = 5.0
PAUSE_S = 0.005

CREATE = "create table if not exists written (client int, number int, text text, primary key (client, number))"
DUMP = "select md5(string_agg(client || ':' || number || text, ',' order by client, number)), count(*) from written"


class Writing:
    """From `with` to the end of the block. Each has a number of its own; `acks`: Unix time in seconds -> number."""

    def __init__(self, dsn: str, client: int = 0) -> None:
        self.dsn = f"{dsn}&connect_timeout={CONNECT_TIMEOUT_S}"
        self.client = client
        self.acks: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writing {client}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    @property
    def acknowledged(self) -> set[int]:
        """Numbers of rows that must be there, unless a failover lost them."""
        return {number for _, number in self.acks}

    def first_after(self, at_s: float) -> float | None:
        """When something was acknowledged again, seconds after a Unix time."""
        return next((acked_s - at_s for acked_s, _ in list(self.acks) if acked_s > at_s), None)

    def outage_s(self, from_s: float) -> float:
        """The longest time without an acknowledgement that ended after a Unix time."""
        times = [at_s for at_s, _ in list(self.acks)]
        return max((b - a for a, b in itertools.pairwise(times) if b > from_s), default=0.0)

    def _run(self) -> None:
        session: psycopg.Connection | None = None
        for number in itertools.count():
            if self._ended.is_set():
                break
            try:
                if session is None:
                    session = psycopg.connect(self.dsn, autocommit=True)
                self._write(session, number)
                self.acks.append((time.time(), number))
            except psycopg.Error:
                if session is not None:
                    session.close()
                session = None
            self._ended.wait(PAUSE_S)
        if session is not None:
            session.close()

    def _write(self, session: psycopg.Connection, number: int) -> None:
        """A session that gets no answer is cut: else a writer that is fenced would hold it for good."""
        late = threading.Timer(STATEMENT_TIMEOUT_S, lambda: cut(session))
        late.start()
        try:
            text = f"row {number} " + "x" * (number % 200)
            session.execute("insert into written values (%s, %s, %s)", [self.client, number, text])
        finally:
            late.cancel()


def cut(session: psycopg.Connection) -> None:
    """Ends a session's socket under it, as a network does."""
    with contextlib.suppress(OSError, psycopg.Error):  # it ended just now
        taken = socket.socket(fileno=session.fileno())
        try:
            taken.shutdown(socket.SHUT_RDWR)
        finally:
            taken.detach()
