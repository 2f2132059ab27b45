"""Which processes belong to a local Ray cluster, and that they end; without a Ray."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.ray import local as local_ray

PROGRAM = "import signal; print(flush=True); signal.pause()"


@contextmanager
def sleeper(python: str = sys.executable, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with this in its environment."""
    command = [python, "-c", PROGRAM]
    environment = {**os.environ, **environ}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_processes_are_found_by_the_mark_in_their_environment_and_no_others(tmp_path: Path) -> None:
    other, token = str(tmp_path) + "2", local_ray.environment(tmp_path)  # what a client's children inherit
    with (
        sleeper(**{local_ray.MARK_NAME: str(tmp_path)}) as ours,
        sleeper(**{local_ray.MARK_NAME: other}) as theirs,
        sleeper(**token) as client,
    ):
        assert local_ray.processes(tmp_path) == {ours.pid: start_ticks(ours.pid)}
        assert local_ray.end_processes(tmp_path) == 1
        assert start_ticks(ours.pid) is None
        assert theirs.poll() is None
        assert client.poll() is None
    assert local_ray.end_processes(tmp_path) == 0


def test_a_process_whose_title_hides_the_mark_is_found_by_its_session(tmp_path: Path) -> None:
    program = "import os, subprocess, sys\n"
    program += "del os.environ[sys.argv[1]]\n"
    program += "child = subprocess.Popen(['sleep', '600'])\n"
    program += "print(child.pid, flush=True)\n"
    program += "child.wait()"
    command = [sys.executable, "-c", program, local_ray.MARK_NAME]
    environ = {**os.environ, local_ray.MARK_NAME: str(tmp_path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert set(local_ray.processes(tmp_path)) == {leader.pid, child}
        assert local_ray.end_processes(tmp_path) == 2
    assert start_ticks(child) is None


def test_what_a_host_process_started_last_is_found_after_it_was_killed(tmp_path: Path) -> None:
    program = "import os, subprocess, sys\n"
    program += "print(subprocess.Popen(['sleep', '600'], env={}).pid, flush=True)\n"
    program += "sys.stdin.read()"
    environ = {**os.environ, local_ray.MARK_NAME: str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as host:
        assert host.stdout is not None
        child = int(host.stdout.readline())
        host.kill()
    assert local_ray.processes(tmp_path) == {}
    assert local_ray.end_processes(tmp_path, session=host.pid) == 1
    assert start_ticks(child) is None


def test_a_process_does_not_find_itself(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from aurora_ray.ray import local as local_ray\n"
    program += "sys.exit(local_ray.end_processes(Path(sys.argv[1])))"
    environ = {**os.environ, local_ray.MARK_NAME: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environ, check=False, start_new_session=True
    )
    assert done.returncode == 0


def test_daemons_are_live_children_with_their_names(tmp_path: Path) -> None:
    program = tmp_path / "raylet"
    program.symlink_to(sys.executable)
    with sleeper(str(program)) as raylet, sleeper():
        daemons = local_ray.daemons_of(os.getpid())
        assert daemons == {"raylet": (raylet.pid, start_ticks(raylet.pid))}
        assert not local_ray.dead(daemons)
    assert local_ray.dead(daemons) == {"raylet": raylet.pid}
    assert local_ray.daemons_of(os.getpid()) == {}


def test_a_cluster_serves_while_its_daemons_live(tmp_path: Path) -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    local_ray.note(tmp_path, "127.0.0.1:1", {"raylet": (os.getpid(), ticks)})
    running = local_ray.find_serving(tmp_path, 0)
    assert running is not None
    assert running.address == "127.0.0.1:1"
    for address, daemon_ticks in (("127.0.0.1:1", ticks + 1), ("", ticks)):
        local_ray.note(tmp_path, address, {"raylet": (os.getpid(), daemon_ticks)})
        with pytest.raises(local_ray.LocalRayError, match="`aurora down`, then `aurora up`"):
            local_ray.find_serving(tmp_path, 0)


def test_a_copy_of_the_directory_does_not_find_what_runs_in_the_first(tmp_path: Path) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    local_ray.note(first, "127.0.0.1:1", {})
    shutil.copytree(first, copy)
    (tmp_path / "link").symlink_to(first)
    assert local_ray.find(tmp_path / "link") == local_ray.find(first) is not None
    assert local_ray.find(copy) is None


def test_a_command_takes_its_own_logs_along_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "socket_dir", lambda _: tmp_path)
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / f"python-core-driver-01_{os.getpid()}.log").touch()
    others = {f"python-core-driver-02_{os.getpid()}0.log", "gcs_server.out"}
    for name in others:
        (logs / name).touch()
    local_ray.forget_command_logs(tmp_path)
    assert set(os.listdir(logs)) == others


@pytest.mark.parametrize("left", ["", "cut off", "0" * 63])
def test_a_token_that_is_none_is_made_anew(tmp_path: Path, left: str) -> None:
    path = tmp_path / local_ray.TOKEN_NAME
    path.write_text(left)
    local_ray._make_token(path)
    token = path.read_text()
    assert len(token) == 64
    local_ray._make_token(path)
    assert path.read_text() == token
