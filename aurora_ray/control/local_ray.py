"""A Ray cluster of our own on this machine, for those who do not bring one. It outlives the command that started it.

It is held by one process, `python -m aurora_ray.control.ray_host`, in a session of its own; when that ends, all of it
ends. It listens on 127.0.0.1 only and admits only who knows the token in the data directory. Its sockets and logs lie
in a private directory with a short name, because the name of a Unix socket has at most 107 bytes.

`<data_dir>/ray.json`: {"address": "host:port", "pid": of the host process, "ticks": its start time}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.errors import AuroraError, ConfigurationError

FILE_NAME: Final = "ray.json"
TOKEN_NAME: Final = "ray.token"  # noqa: S105  (the name of a file)
LOG_NAME: Final = "ray.log"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02


class LocalRayError(AuroraError):
    """The local Ray cluster did not start or stop as it should."""

    retryable = True


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A running one."""

    address: str
    pid: int


def environment(data_dir: Path) -> dict[str, str]:
    """What must be in the environment before `ray` is imported, in the host and in whoever connects to it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(data_dir / TOKEN_NAME),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's name for "on one machine": everything listens on the loopback address only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Actors and the engines that they start get no lower priority than their clients.
        "RAY_worker_niceness": "0",
        # Storage nodes and writers must not be ended because other programs use the memory.
        "RAY_memory_monitor_refresh_ms": "0",
    }


def socket_dir(data_dir: Path) -> Path:
    """Where Ray keeps its sockets and logs: in a private directory, since Ray opens its own to everyone."""
    return _private_dir(data_dir) / "r"


def _private_dir(data_dir: Path) -> Path:
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"ray-{name}"


def find(data_dir: Path) -> LocalRay | None:
    """The one that this data directory's last `start` left running."""
    try:
        document = json.loads((data_dir / FILE_NAME).read_text())
        running = LocalRay(str(document["address"]), int(document["pid"]))
        return running if start_ticks(running.pid) == int(document["ticks"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note(data_dir: Path, address: str) -> None:
    """Called by the host process when its cluster is up."""
    path = data_dir / FILE_NAME
    text = json.dumps({"address": address, "pid": os.getpid(), "ticks": start_ticks(os.getpid())})
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
    temporary.replace(path)


def start(data_dir: Path, arguments: list[str]) -> LocalRay:
    """Starts the host process, with these further arguments, and waits for its address. Raises LocalRayError."""
    _make_token(data_dir / TOKEN_NAME)
    _make_private_dir(_private_dir(data_dir))
    (data_dir / FILE_NAME).unlink(missing_ok=True)
    log_path = data_dir / "logs" / LOG_NAME
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "aurora_ray.control.ray_host", "--data-dir", str(data_dir), *arguments],
            env={**os.environ, **environment(data_dir)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        running = find(data_dir)
        if running is not None:
            # It is not ours to wait for any more: it shall outlive this process.
            process.returncode = 0
            return running
        code = process.poll()
        if code is not None:
            raise LocalRayError(f"Ray did not start (exit code {code}); see {log_path}: {_last_line(log_path)}")
        time.sleep(POLL_S)
    process.terminate()
    raise LocalRayError(f"Ray was not up within {START_TIMEOUT_S:g} s; see {log_path}")


def stop(data_dir: Path) -> bool:
    """Ends the host process and with it the cluster; whether there was one. Raises LocalRayError."""
    running = find(data_dir)
    if running is not None:
        os.kill(running.pid, signal.SIGTERM)
        if not _gone(running.pid, STOP_TIMEOUT_S):
            os.kill(running.pid, signal.SIGKILL)
            if not _gone(running.pid, STOP_TIMEOUT_S):
                raise LocalRayError(f"process {running.pid}, which holds the Ray cluster, does not end: kill it")
    (data_dir / FILE_NAME).unlink(missing_ok=True)
    shutil.rmtree(_private_dir(data_dir), ignore_errors=True)
    return running is not None


def _gone(pid: int, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while start_ticks(pid) is not None:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # it is our child if this very process started it
    return True


def _make_token(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def _make_private_dir(path: Path) -> None:
    """A directory in a place where everyone may write: ours and private, or refused."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise ConfigurationError(f"{path} belongs to someone else: remove it, or set TMPDIR to another directory")
    for leftover in path.iterdir():  # of a cluster that was killed
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it says nothing"
