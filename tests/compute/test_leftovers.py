"""Ending what an earlier incarnation left, and nobody else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora_ray.compute.leftovers import (
    end_leftovers,
    of_engine,
    read_pid_file,
    start_ticks,
    working_below,
    write_pid_file,
)
from tests.support.polling import poll_until_blocking


@contextmanager
def sleeper(cwd: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; sys.stdout.write('up'); sys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
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


PROGRAM = Path(sys.executable).resolve().name


async def test_the_engines_own_processes_are_killed_and_nobody_else(tmp_path: Path) -> None:
    mount, other = tmp_path / "mount", tmp_path / "mount2"
    (mount / "base").mkdir(parents=True)
    other.mkdir()
    pid_file = tmp_path / "engine.pid"
    with (
        sleeper(tmp_path) as noted,
        sleeper(mount / "base") as server,
        sleeper(tmp_path, AURORA_MOUNT=str(mount)) as started_by_it,
        sleeper(other, AURORA_MOUNT=str(other)) as of_another_mount,
        subprocess.Popen(["sleep", "100"], cwd=mount) as somebodys,  # noqa: ASYNC220
    ):
        try:
            write_pid_file(pid_file, noted.pid)
            assert sorted(of_engine(mount, [PROGRAM])) == sorted([server.pid, started_by_it.pid])
            assert await end_leftovers(pid_file, mount, [PROGRAM]) == 3
            assert {process.wait() for process in (noted, server, started_by_it)} == {-9}
            assert of_another_mount.poll() is None
            assert somebodys.poll() is None
            assert working_below(mount) == [somebodys.pid]
            assert not pid_file.exists()
        finally:
            somebodys.kill()


async def test_a_pid_that_belongs_to_somebody_else_now_is_left_alone(tmp_path: Path) -> None:
    pid_file = tmp_path / "engine.pid"
    with sleeper(tmp_path) as process:
        write_pid_file(pid_file, process.pid)
        assert read_pid_file(pid_file) == process.pid
        copy = tmp_path / "copy" / pid_file.name
        copy.parent.mkdir()
        copy.write_text(pid_file.read_text())
        assert read_pid_file(copy) is None
        write_pid_file(copy, process.pid)
        assert read_pid_file(copy) == process.pid
        pid, ticks, boot, _ = pid_file.read_text().split()
        pid_file.write_text(f"{pid} {ticks} {boot}\n")  # an earlier version's
        assert read_pid_file(pid_file) == process.pid
        pid_file.write_text(f"{pid} {int(ticks) - 1} {boot}\n")
        assert read_pid_file(pid_file) is None
        pid_file.write_text(f"{pid} {ticks} another-boot\n")
        assert await end_leftovers(pid_file, tmp_path / "mount", [PROGRAM]) == 0
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
