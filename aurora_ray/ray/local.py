"""A Ray cluster of our own on this machine, for those who do not bring one. It outlives the command that started it.

It is held by one process, `python -m aurora_ray.ray.host`, in a session of its own, which starts it anew when
one of its daemons dies. Every process of it carries a mark in its environment, so that none is left when it ends. It
listens on 127.0.0.1 only and admits only who knows the token in the data directory. Its sockets and logs lie in a
private directory with a short name, because the name of a Unix socket has at most 107 bytes.

`<data_dir>/ray.json`: {"place": of the directory itself, "address": "host:port", or empty while it starts anew, "pid":
of the host process, "ticks": its start time, "daemons": {name: [pid, start time]}}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.compute.progress import children_of
from aurora_ray.durable import make_file, place_of, replace_file
from aurora_ray.errors import UNDECODABLE, AuroraError, ConfigurationError

FILE_NAME: Final = "ray.json"
TOKEN_NAME: Final = "ray.token"  # noqa: S105  (the name of a file)
LOG_NAME: Final = "ray.log"
START_TIMEOUT_S: Final = 90.0
RESTART_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 30.0
END_TIMEOUT_S: Final = 10.0
# In the environment of the host process and so of all that it starts. The token's path would not do: whoever connects
# has that in its environment as well, and hands it on to programs of its own.
MARK_NAME: Final = "AURORA_RAY_OF"
# Without these two, actors serve on, but nobody starts another one.
DAEMON_NAMES: Final = ("gcs_server", "raylet")
POLL_S: Final = 0.02
_TOKEN: Final = re.compile(r"[0-9a-f]{64}")


class LocalRayError(AuroraError):
    """The local Ray cluster did not start or stop as it should."""

    retryable = True


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A running one."""

    address: str
    pid: int
    daemons: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def serves(self) -> bool:
        """Whether it is worth connecting: all of its daemons are there. If not, the host process starts it anew."""
        return bool(self.address) and not dead(self.daemons)


def environment(data_dir: Path) -> dict[str, str]:
    """What must be in the environment before `ray` is imported, in the host and in whoever connects to it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(data_dir / TOKEN_NAME),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's name for "on one machine": everything listens on the loopback address only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Every command that asks is a job; what it did would be kept in the memory of Ray's GCS.
        "RAY_task_events_report_interval_ms": "0",
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


def forget_command_logs(data_dir: Path) -> None:
    """Removes the files that Ray made in its directory of logs for this process, which only asked something."""
    for path in (socket_dir(data_dir) / "session_latest" / "logs").glob(f"python-core-driver-*_{os.getpid()}.log"):
        path.unlink(missing_ok=True)


def find(data_dir: Path) -> LocalRay | None:
    """The one that this data directory's last `start` left running; not that of which the directory is a copy."""
    try:
        document = json.loads((data_dir / FILE_NAME).read_text())
        here = place_of(data_dir)
        if document.get("place", here) != here:  # an earlier version's does not say
            return None
        daemons = {str(name): (int(pid), int(ticks)) for name, (pid, ticks) in document["daemons"].items()}
        running = LocalRay(str(document["address"]), int(document["pid"]), daemons)
        return running if start_ticks(running.pid) == int(document["ticks"]) else None
    except (OSError, *UNDECODABLE):
        return None


def find_serving(data_dir: Path, timeout_s: float = RESTART_TIMEOUT_S) -> LocalRay | None:
    """The same; one that starts anew is waited for. Raises LocalRayError."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        running = find(data_dir)
        if running is None or running.serves:
            return running
        if time.monotonic() > deadline_s:
            raise LocalRayError(
                f"Ray died and is not up again after {timeout_s:g} s (see {data_dir / 'logs' / LOG_NAME}): "
                "`aurora down`, then `aurora up`"
            )
        time.sleep(POLL_S)


def daemons_of(host: int) -> dict[str, tuple[int, int]]:
    """The children of a host process without which its cluster is none: their process ids and start times."""
    found = {}
    for pid in children_of(host):
        with contextlib.suppress(OSError):
            name, ticks = Path(f"/proc/{pid}/comm").read_text().strip(), start_ticks(pid)
            if name in DAEMON_NAMES and ticks is not None:
                found[name] = (pid, ticks)
    return found


def dead(daemons: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Those that are gone, with the process ids that they had."""
    return {name: pid for name, (pid, ticks) in daemons.items() if start_ticks(pid) != ticks}


def note(data_dir: Path, address: str, daemons: dict[str, tuple[int, int]]) -> None:
    """Called by the host process when its cluster is up, and without an address when it is to be started anew."""
    host = {"address": address, "pid": os.getpid(), "ticks": start_ticks(os.getpid())}
    text = json.dumps({"place": place_of(data_dir), **host, "daemons": daemons}) + "\n"
    replace_file(data_dir / FILE_NAME, text, durable=False)  # it names processes, which no power cut survives


def start(data_dir: Path, arguments: list[str]) -> LocalRay:
    """Starts the host process, with these further arguments, and waits for its address. Raises LocalRayError."""
    end_processes(data_dir)  # of a cluster whose host was killed: they would hold ports and files
    _make_token(data_dir / TOKEN_NAME)
    make_private_dir(data_dir)
    (data_dir / FILE_NAME).unlink(missing_ok=True)
    log_path = data_dir / "logs" / LOG_NAME
    with log_path.open("wb") as log:
        os.fchmod(log.fileno(), 0o600)
        process = subprocess.Popen(
            [sys.executable, "-m", "aurora_ray.ray.host", "--data-dir", str(data_dir), *arguments],
            env={**os.environ, **environment(data_dir), MARK_NAME: str(data_dir)},
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
            end_processes(data_dir, session=process.pid)
            raise LocalRayError(f"Ray did not start (exit code {code}); see {log_path}: {_last_line(log_path)}")
        time.sleep(POLL_S)
    end_processes(data_dir, session=process.pid)  # it may be at anything: asking it nicely is no use
    process.wait()
    raise LocalRayError(f"Ray was not up within {START_TIMEOUT_S:g} s; see {log_path}")


def stop(data_dir: Path) -> bool:
    """Ends the host process and all others of the cluster; whether there was one. Raises LocalRayError."""
    running, known = find(data_dir), processes(data_dir)
    if running is not None:
        # Without its daemons it cannot take leave of anyone, and would only start them again.
        _signal(running.pid, signal.SIGTERM if running.serves else signal.SIGKILL)
        if not _gone(running.pid, STOP_TIMEOUT_S):
            _signal(running.pid, signal.SIGKILL)
            if not _gone(running.pid, STOP_TIMEOUT_S):
                raise LocalRayError(f"process {running.pid}, which holds the Ray cluster, does not end: kill it")
    ended = end_processes(data_dir, known, session=running.pid if running is not None else None)
    (data_dir / FILE_NAME).unlink(missing_ok=True)
    shutil.rmtree(_private_dir(data_dir), ignore_errors=True)
    return running is not None or ended > 0


def processes(data_dir: Path, session: int | None = None) -> dict[int, int]:
    """Every process of this data directory's cluster on this machine except the caller: start times by process id.

    They carry the mark, or are in a session with one that does: the title of a process may be written over its mark.
    Of a host process that ended a moment ago, `session` is the process id: what it started last may have no mark any
    more, and nobody beside it who has one.
    """
    mark = os.fsencode(f"{MARK_NAME}={data_dir}")
    alive, sessions, marked = {}, {}, set()
    for pid in _pids():
        ticks = start_ticks(pid)
        with contextlib.suppress(OSError):
            if ticks is not None:
                alive[pid], sessions[pid] = ticks, os.getsid(pid)
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    marked.add(pid)
    ours = {sessions[pid] for pid in marked} | ({session} if session is not None else set())
    if os.getsid(0) != os.getpid():
        ours.discard(os.getsid(0))  # the host process leads a session of its own; this is somebody's terminal
    found = marked | {pid for pid, of in sessions.items() if of in ours}
    return {pid: alive[pid] for pid in found - {os.getpid()}}


def end_processes(data_dir: Path, known: Mapping[int, int] | None = None, *, session: int | None = None) -> int:
    """Kills them, and those `known` from before, and waits until they are gone; how many. Raises LocalRayError."""
    deadline_s = time.monotonic() + END_TIMEOUT_S
    killed = {pid: ticks for pid, ticks in (known or {}).items() if start_ticks(pid) == ticks}
    while True:
        # One that is ending has no environment any more, but may still hold files.
        ending = {pid: ticks for pid, ticks in killed.items() if start_ticks(pid) == ticks}
        left = {**processes(data_dir, session), **ending}
        if not left:
            return len(killed)
        if time.monotonic() > deadline_s:
            raise LocalRayError(f"processes {sorted(left)} of the Ray cluster of {data_dir} do not end: kill them")
        for pid, ticks in left.items():
            if start_ticks(pid) == ticks:
                _signal(pid, signal.SIGKILL)
        killed.update(left)
        time.sleep(POLL_S)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


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
    """Nothing runs now that knows the token; one that is none (a disk that was full, an earlier version's that a power
    cut emptied) is made anew."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if _TOKEN.fullmatch(path.read_text().strip()) is None:
            path.unlink()
    try:
        make_file(path, secrets.token_hex(32))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def make_private_dir(data_dir: Path) -> None:
    """Makes an empty directory for `socket_dir`, in a place where everyone may write: ours and private, or refused."""
    path = _private_dir(data_dir)
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
