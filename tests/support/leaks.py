"""What a test left behind: processes, listening ports, threads, shared memory, temporary files.

Compares the state after a test with the state before it. Ending takes time, so a leak is one only if it is still there
after GRACE_S. What leaked is removed, so that the next test is judged by what it does itself.
"""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.support.polling import poll_until_blocking
from tests.support.processes import Process, ProcessWatch, kill
from tests.support.shared_memory import SHARED_MEMORY, SharedMemoryWatch

GRACE_S = 3.0
KINDS = ("process", "port", "thread", "shm", "tmp")
# Entries of the run's temporary directory that belong to the run rather than to one test.
_RUN_ENTRIES = ("pytest-of-", "ray")
_ACCEPTS = (socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    processes: dict[int, Process]
    listening: dict[str, str]  # socket inode: port
    threads: frozenset[threading.Thread]
    shared_memory: frozenset[str]
    temporary: frozenset[str]


class LeakDetector:
    """One per test run; `run_dir` is where TMPDIR points during the run."""

    def __init__(self, run_dir: Path, grace_s: float = GRACE_S) -> None:
        self._run_dir = run_dir
        self._grace_s = grace_s
        self._watch = ProcessWatch(run_dir)
        self._shared_memory = SharedMemoryWatch(self._watch)
        self._shared_memory.start()

    def close(self) -> None:
        """Ends its thread."""
        self._shared_memory.stop()

    def snapshot(self) -> _Snapshot:
        """What is there now."""
        return _Snapshot(
            processes=self._watch.ours(),
            listening=_own_listening_sockets(),
            threads=frozenset(threading.enumerate()),
            shared_memory=self._shared_memory.made(),
            temporary=_entries(self._run_dir),
        )

    def leaks_since(self, before: _Snapshot, allowed: Collection[str] = ()) -> list[str]:
        """A sentence per leak that outlives the grace period; the leaked things are removed. `allowed`: see KINDS."""
        checks: dict[str, Callable[[], list[str]]] = {
            "process": lambda: [str(process) for process in self._watch.started_since(before.processes)],
            "port": lambda: _new_ports(before.listening),
            "thread": lambda: _new_threads(before.threads),
            "shm": lambda: [f"shared memory {name}" for name in self._new_shared_memory(before)],
            "tmp": lambda: self._new_temporary(before.temporary),
        }
        assert set(checks) == set(KINDS)
        assert set(allowed) <= set(KINDS), f"unknown kinds of leaks: {set(allowed) - set(KINDS)}"
        wanted = [check for kind, check in checks.items() if kind not in allowed]

        def find() -> list[str]:
            return [leak for check in wanted for leak in check()]

        try:
            poll_until_blocking(lambda: not find(), self._grace_s, interval_s=0.05)
        except AssertionError:
            leaks = find()
            self._remove(before, allowed)
            return leaks
        return []

    def _remove(self, before: _Snapshot, allowed: Collection[str]) -> None:
        if "process" not in allowed:
            kill(self._watch.started_since(before.processes))
        if "shm" not in allowed:
            for name in self._new_shared_memory(before):
                (SHARED_MEMORY / name).unlink(missing_ok=True)
        if "tmp" not in allowed:
            for name in _entries(self._run_dir) - before.temporary:
                if not name.startswith(_RUN_ENTRIES):
                    remove_tree(self._run_dir / name)

    def _new_shared_memory(self, before: _Snapshot) -> list[str]:
        return sorted(self._shared_memory.made() - before.shared_memory)

    def _new_temporary(self, before: frozenset[str]) -> list[str]:
        new = sorted(_entries(self._run_dir) - before)
        return [f"temporary file or directory {name}" for name in new if not name.startswith(_RUN_ENTRIES)]


def remove_tree(path: Path) -> None:
    """Delete a file or a whole directory; what has gone meanwhile is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _entries(directory: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))
    except FileNotFoundError:
        return frozenset()


def _new_ports(before: dict[str, str]) -> list[str]:
    return [f"listening port {port}" for inode, port in _own_listening_sockets().items() if inode not in before]


def _new_threads(before: frozenset[threading.Thread]) -> list[str]:
    """Only threads that would keep the interpreter from ending: daemon threads belong to libraries (grpc's poller)."""
    new = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    return [f"thread {thread.name}" for thread in new if thread is not threading.current_thread()]


def _own_listening_sockets() -> dict[str, str]:
    """Inode and port of each TCP socket that this process itself listens on."""
    listening = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:["):
                # Not from the kernel's table of all sockets of the machine: it may be long.
                with socket.socket(fileno=os.dup(int(name))) as found:
                    if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockopt(*_ACCEPTS):
                        listening[target[len("socket:[") : -1]] = str(found.getsockname()[1])
        except OSError:  # the descriptor of the listing itself, or closed meanwhile
            continue
    return listening
