"""The checks that all other tests rely on can fail: each kind of leak is found, and removed."""

import logging
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.driver_garbage import garbage_closed
from tests.support.leaks import LeakDetector
from tests.support.logs import LogRecorder
from tests.support.polling import poll_until, poll_until_blocking
from tests.support.ports import PortAllocator
from tests.support.processes import ProcessWatch, kill
from tests.support.shared_memory import SHARED_MEMORY

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[LeakDetector]:
    detector = LeakDetector(tmp_path, grace_s=0.2)
    yield detector
    detector.close()


def test_no_leak_no_complaint(detector: LeakDetector, tmp_path: Path) -> None:
    before = detector.snapshot()
    subprocess.run([sys.executable, "-c", ""], check=True, timeout=30)
    (tmp_path / "passing").touch()
    (tmp_path / "passing").unlink()
    assert detector.leaks_since(before) == []


def test_finds_and_kills_a_child(detector: LeakDetector) -> None:
    before = detector.snapshot()
    with subprocess.Popen(SLEEPER) as child:
        leaks = detector.leaks_since(before)
        assert len(leaks) == 1
        assert str(child.pid) in leaks[0]
        assert child.wait(10) == -9


def test_finds_an_orphan_by_its_working_directory(detector: LeakDetector, tmp_path: Path) -> None:
    before = detector.snapshot()
    # The shell ends at once; its child is adopted by init, and its environment says nothing.
    script = f"exec >/dev/null 2>&1; '{sys.executable}' -c 'import time; time.sleep(600)' &"
    subprocess.run(["sh", "-c", script], check=True, cwd=tmp_path, env={}, timeout=30)
    leaks = detector.leaks_since(before)
    assert len(leaks) == 1
    assert leaks[0].startswith("process ")
    poll_until_blocking(lambda: not ProcessWatch(tmp_path).started_since(before.processes), what="it is gone")


def test_children_of_what_was_there_before_are_not_leaks(detector: LeakDetector, tmp_path: Path) -> None:
    """A Ray cluster of a session fixture starts workers when it likes."""
    starter = "import subprocess, sys; sys.stdin.read(1); subprocess.run(sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", starter, *SLEEPER], stdin=subprocess.PIPE) as cluster:
        before = detector.snapshot()
        known = {process.key for process in before.processes.values()}
        assert cluster.stdin is not None
        cluster.stdin.write(b"g")
        cluster.stdin.flush()
        watch = ProcessWatch(tmp_path)
        poll_until_blocking(lambda: len(watch.ours()) > len(before.processes), what="the worker runs")
        assert detector.leaks_since(before) == []
        started = [process for process in watch.ours().values() if process.key not in known]
        cluster.kill()
    kill(started)


def test_finds_a_listening_port(detector: LeakDetector, free_port: int) -> None:
    before = detector.snapshot()
    with socket.create_server(("127.0.0.1", free_port)):
        assert detector.leaks_since(before) == [f"listening port {free_port}"]
    assert detector.leaks_since(before) == []


def test_finds_a_thread(detector: LeakDetector) -> None:
    before = detector.snapshot()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    thread.start()
    assert detector.leaks_since(before) == ["thread forgotten"]
    release.set()
    thread.join(10)


def test_finds_and_removes_shared_memory(detector: LeakDetector) -> None:
    before = detector.snapshot()
    segment = SHARED_MEMORY / f"aurora-test-{uuid.uuid4().hex}"
    with segment.open("wb"):
        poll_until_blocking(lambda: segment.name in detector.snapshot().shared_memory, what="it is noticed")
    assert detector.leaks_since(before) == [f"shared memory {segment.name}"]
    assert not segment.exists()


def test_shared_memory_of_others_is_none_of_our_business(detector: LeakDetector) -> None:
    """Not even after its maker has ended: it could be that of a fleet that was killed, and is being looked into."""
    before = detector.snapshot()
    name = f"aurora-test-{uuid.uuid4().hex}"
    segment = SHARED_MEMORY / name
    # Adopted by init before it makes anything, and with nothing of this run about it.
    maker = "import os, sys, time\nwhile os.getppid() == int(sys.argv[2]): time.sleep(0.01)\n"
    maker += "f = open(sys.argv[1], 'wb'); print(os.getpid(), flush=True); time.sleep(0.3)"
    command = f"'{sys.executable}' -c \"$1\" '{segment}' $$ &"
    shell = subprocess.run(
        ["sh", "-c", command, "sh", maker], check=True, cwd="/", env={}, timeout=30, stdout=subprocess.PIPE
    )
    try:
        assert int(shell.stdout) > 1, "the pipe is closed when the maker has ended"
        assert segment.exists()
        assert detector.leaks_since(before) == []
        assert segment.exists()
    finally:
        segment.unlink(missing_ok=True)


def test_finds_and_removes_temporary_files(detector: LeakDetector, tmp_path: Path) -> None:
    before = detector.snapshot()
    (tmp_path / "left").mkdir()
    assert detector.leaks_since(before, allowed=["tmp"]) == []
    assert detector.leaks_since(before) == ["temporary file or directory left"]
    assert not (tmp_path / "left").exists()


@pytest.mark.allowed_logs("^WARNING house: on purpose$", "out of")
def test_log_recorder_reports_what_no_pattern_names() -> None:
    recorder = LogRecorder()
    log = logging.getLogger("house")
    log.addHandler(recorder)
    try:
        log.info("quiet")
        log.warning("on purpose")
        log.error("out of %s", "cheese")
    finally:
        log.removeHandler(recorder)
    assert recorder.unlisted(["^WARNING house: on purpose$"]) == ["ERROR house: out of cheese"]
    assert recorder.unlisted(["on purpose", "out of"]) == []


def test_ports_are_free_and_differ() -> None:
    ports = PortAllocator()
    allocated = [ports.allocate() for _ in range(20)]
    assert len(set(allocated)) == 20
    with socket.create_server(("127.0.0.1", allocated[0])) as server:
        assert server.getsockname()[1] == allocated[0]


async def test_polling_returns_the_result_or_says_what_was_awaited() -> None:
    answers = iter([0, 0, 7])
    assert await poll_until(lambda: next(answers)) == 7

    async def never() -> bool:
        return False

    with pytest.raises(AssertionError, match=r"the moon is blue \(last result: False\)"):
        await poll_until(never, timeout_s=0.02, what="the moon is blue")
    with pytest.raises(AssertionError, match="the moon is blue"):
        poll_until_blocking(lambda: 0, timeout_s=0.02, what="the moon is blue")


def test_what_a_driver_left_open_is_closed_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        with garbage_closed():
            left = socket.create_connection(server.getsockname())
            cycle: list[object] = [left]
            cycle.append(cycle)
        assert left.fileno() == -1
        assert ours.fileno() >= 0
        assert server.fileno() >= 0
