"""A writer that another one has replaced: stopped with SIGSTOP, sealed out, continued with SIGCONT."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import psycopg
import pytest

from tests.support.polling import poll_until_blocking
from tests.support.stack import Stack
from tests.support.stack_process import Frozen
from tests.support.timing import scaled

pytestmark = pytest.mark.postgres
FENCED_TIMEOUT_S = 20


def rows(session: psycopg.Connection) -> list[int]:
    return [row[0] for row in session.execute("SELECT id FROM t ORDER BY id")]


def test_a_writer_that_was_stopped_and_replaced_changes_nothing(stack: Stack) -> None:
    first, second = stack.writer, stack.add_writer("second")
    with ExitStack() as sessions, ThreadPoolExecutor(1) as pool:
        committing, open_ = (sessions.enter_context(closing(stack.connect())) for _ in range(2))
        committing.execute("CREATE TABLE t (id int PRIMARY KEY)")
        committing.execute("INSERT INTO t VALUES (1)")
        open_.execute("BEGIN; INSERT INTO t VALUES (2)")
        # The driver stops first, so this commit can never have left the machine.
        first.stop()
        commit = pool.submit(committing.execute, "INSERT INTO t VALUES (3)")
        poll_until_blocking(lambda: "INSERT" in _statements(stack), what="the commit is on its way")
        with Frozen(first.engine_processes()):
            second.open()
            with stack.connect(second) as session:
                session.execute("INSERT INTO t VALUES (4)")
        first.resume()
        with pytest.raises(psycopg.OperationalError):
            commit.result(scaled(FENCED_TIMEOUT_S))
        with pytest.raises(psycopg.OperationalError):
            open_.execute("COMMIT")
    assert first.wait(scaled(FENCED_TIMEOUT_S)) != 0
    assert first.ended is not None
    assert "higher epoch" in first.ended
    first.wait_engine_gone()
    with pytest.raises(psycopg.OperationalError):
        stack.connect(first)
    with stack.connect(second) as session:
        assert rows(session) == [1, 4]
        session.execute("INSERT INTO t VALUES (5)")

    stack.writer = second
    stack.power_cut()
    stack.revive_nodes()
    second.open()
    with stack.connect(second) as session:
        assert rows(session) == [1, 4, 5]


def _statements(stack: Stack) -> str:
    """What the first engine's processes say that they do; asking it by SQL could wait for the stopped driver."""
    return " ".join(stack.writer.engine_titles())


def test_a_writer_at_work_ends_when_another_opens(stack: Stack) -> None:
    first, second = stack.writer, stack.add_writer("second")
    with closing(stack.connect()) as session:
        session.execute("CREATE TABLE t (id int PRIMARY KEY)")
        assert second.open().epoch > first.report.epoch
        poll_until_blocking(lambda: not first.alive, FENCED_TIMEOUT_S, what="the first writer has ended by itself")
        with pytest.raises(psycopg.OperationalError):
            session.execute("INSERT INTO t VALUES (1)")
    first.wait_engine_gone()
    with stack.connect(second) as session:
        session.execute("INSERT INTO t VALUES (2)")
        assert rows(session) == [2]
