"""Ending what an earlier incarnation left, and nobody else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora_ray.compute.leftovers import end_leftovers, read_pid_file, start_ticks, working_below, write_pid_file
from tests.support.polling import poll_until_blocking


@contextmanager
def sleeper(cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; sys.stdout.write('up'); sys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"up"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


async def test_what_the_pid_file_names_and_what_works_in_the_mount_is_killed(tmp_path: Path) -> None:
    mount, other = tmp_path / "mount", tmp_path / "mount2"
    (mount / "base").mkdir(parents=True)
    other.mkdir()
    pid_file = tmp_path / "engine.pid"
    with sleeper(tmp_path) as noted, sleeper(mount / "base") as inside, sleeper(other) as stranger:
        write_pid_file(pid_file, noted.pid)
        assert working_below(mount) == [inside.pid]
        assert await end_leftovers(pid_file, mount) == 2
        assert noted.wait() == -9
        assert inside.wait() == -9
        assert stranger.poll() is None
        assert not pid_file.exists()


async def test_a_pid_that_belongs_to_somebody_else_now_is_left_alone(tmp_path: Path) -> None:
    pid_file = tmp_path / "engine.pid"
    with sleeper(tmp_path) as process:
        write_pid_file(pid_file, process.pid)
        assert read_pid_file(pid_file) == process.pid
        pid, ticks, boot = pid_file.read_text().split()
        pid_file.write_text(f"{pid} {int(ticks) - 1} {boot}\n")
        assert read_pid_file(pid_file) is None
        pid_file.write_text(f"{pid} {ticks} another-boot\n")
        assert await end_leftovers(pid_file, tmp_path / "mount") == 0
        assert process.poll() is None


def test_a_corpse_is_not_running(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    poll_until_blocking(lambda: start_ticks(process.pid) is None, what="it is a zombie")
    process.wait()
    assert start_ticks(process.pid) is None
    assert start_ticks(os.getpid()) is not None


def test_garbage_in_the_pid_file_is_no_process(tmp_path: Path) -> None:
    for text in ("", "x", "1 2", "1 2 3 4"):
        (tmp_path / "pid").write_text(text)
        assert read_pid_file(tmp_path / "pid") is None
