"""What a kill -9 of one part does to the others, and what it leaves on the machine."""

import os
import signal
from pathlib import Path

import pytest

from aurora_ray.engine.postgres.shared_memory import posix_segments
from tests.support.polling import poll_until_blocking
from tests.support.stack import Stack

pytestmark = pytest.mark.postgres
SYSV_TABLE = Path("/proc/sysvipc/shm")


def sysv_creators() -> set[int]:
    return {int(line.split()[4]) for line in SYSV_TABLE.read_text().splitlines()[1:]}


def test_an_engine_does_not_outlive_its_writer_and_the_next_one_tidies_up(stack: Stack) -> None:
    writer = stack.writer
    with stack.connect() as session:
        session.execute("CREATE TABLE t AS SELECT 1 AS id")
    first_pid = writer.report.pid
    segments = posix_segments(writer.engine_processes())
    assert segments
    assert first_pid in sysv_creators()
    writer.kill()
    writer.wait_engine_gone()
    writer.open()
    assert not [path for path in segments if path.exists()], "shared memory of a killed engine stays"
    assert first_pid not in sysv_creators()
    with stack.connect() as session:
        assert session.execute("SELECT id FROM t").fetchall() == [(1,)]


def test_a_writer_ends_with_its_engine(stack: Stack) -> None:
    writer = stack.writer
    for round_, victim in enumerate(("postmaster", "backend")):
        with stack.connect() as session:
            session.execute(f"CREATE TABLE t{round_} AS SELECT 1 AS id".encode())
            os.kill(writer.report.pid if victim == "postmaster" else session.info.backend_pid, signal.SIGKILL)
            poll_until_blocking(lambda: not writer.alive, what="the writer has ended")
        assert writer.returncode == 3
        assert "engine" in (writer.ended or "")
        writer.wait_engine_gone()
        assert not writer.dirs.mount.exists(), "what an unclean end left was not thrown away"
        writer.open()
        with stack.connect() as session:
            assert session.execute(f"TABLE t{round_}".encode()).fetchall() == [(1,)]
