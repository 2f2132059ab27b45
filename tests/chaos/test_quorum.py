"""Writes need four of six: they go on without a zone, wait without three nodes, and go on by themselves."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from tests.support.stack import Stack
from tests.support.timing import scaled

pytestmark = pytest.mark.postgres
COMMIT_TIMEOUT_S = 20
WATCHED_S = 1.5


def rows(stack: Stack) -> set[int]:
    with stack.connect() as session:
        return {row[0] for row in session.execute("SELECT id FROM t")}


def test_writes_need_four_of_six(stack: Stack) -> None:
    with closing(stack.connect()) as session, ThreadPoolExecutor(1) as pool:

        def insert(number: int) -> Future[psycopg.Cursor]:
            return pool.submit(session.execute, "INSERT INTO t VALUES (%s)", [number])

        session.execute("CREATE TABLE t (id int PRIMARY KEY)")
        stack.kill_nodes(["b1", "b2"])
        for number in range(20):
            insert(number).result(scaled(COMMIT_TIMEOUT_S))

        stack.kill_nodes(["c2"])
        waiting = insert(20)
        time.sleep(WATCHED_S)  # not synchronisation: nothing may happen for a while
        assert not waiting.done(), "a commit was acknowledged by three of six"
        assert rows(stack) == set(range(20)), "a commit that is not durable is visible"

        stack.nodes["b1"].start()
        waiting.result(scaled(COMMIT_TIMEOUT_S))
        insert(21).result(scaled(COMMIT_TIMEOUT_S))

    stack.writer.kill()
    stack.writer.wait_engine_gone()
    stack.writer.open()
    assert rows(stack) == set(range(22))


def test_opening_waits_for_a_quorum_too(stack: Stack) -> None:
    with stack.connect() as session:
        session.execute("CREATE TABLE t (id int PRIMARY KEY)")
        session.execute("INSERT INTO t VALUES (1)")
    stack.power_cut()
    stack.start_nodes(["a1", "b2", "c1"])
    stack.writer.begin()
    time.sleep(WATCHED_S)  # not synchronisation: nothing may happen for a while
    assert stack.writer.alive, stack.writer.log_tail()
    assert stack.writer.first_line() is None, "the volume was opened for writing on three of six"
    stack.start_nodes(["c2"])
    stack.writer.wait_open()
    assert rows(stack) == {1}
