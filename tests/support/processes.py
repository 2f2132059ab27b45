"""Which processes of this machine belong to this test run, from /proc.

Ours are our descendants, and whatever mentions the run's own temporary directory in its command line, environment or
working directory: an engine whose parent was killed is no descendant any more, but its data lies in there. Nothing is
done to the processes watched (no subreaper, which would turn killed orphans into zombies that look alive).
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# Started by the interpreter for its own ends, and meant to stay until it ends.
_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; the start time tells it from a later one with the same id."""

    pid: int
    start_ticks: int
    parent_pid: int
    name: str

    @property
    def key(self) -> tuple[int, int]:
        """What stays the same when a process is adopted by another parent."""
        return (self.pid, self.start_ticks)

    def __str__(self) -> str:
        command = _read(self.pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        return f"process {self.pid}: {command[:160] or self.name}"


class ProcessWatch:
    """Finds the processes that belong to the run whose temporary directory is `mark`."""

    def __init__(self, mark: Path) -> None:
        self._mark = os.fsencode(mark)
        self._marked: dict[tuple[int, int], bool] = {}

    def ours(self) -> dict[int, Process]:
        """Living processes of this run by id, without the test process itself. Zombies are not living."""
        everyone = {process.pid: process for process in map(_process, _pids()) if process is not None}
        everyone.pop(os.getpid(), None)
        found = {p.pid: p for p in everyone.values() if self._descends(p, everyone) or self._is_marked(p)}
        return {pid: p for pid, p in found.items() if not any(h in _read(pid, "cmdline") for h in _HELPERS)}

    def started_since(self, before: dict[int, Process]) -> list[Process]:
        """Those of ours that are new and were not started by one that was there `before` (a cluster's workers)."""
        known = {process.key for process in before.values()}
        now = self.ours()
        return [p for p in now.values() if p.key not in known and not self._has_known_ancestor(p, now, known)]

    def _descends(self, process: Process, everyone: dict[int, Process]) -> bool:
        seen = 0
        while process.parent_pid != os.getpid():
            parent = everyone.get(process.parent_pid)
            seen += 1
            if parent is None or seen > len(everyone):
                return False
            process = parent
        return True

    def _has_known_ancestor(self, process: Process, now: dict[int, Process], known: set[tuple[int, int]]) -> bool:
        parent = now.get(process.parent_pid)
        for _ in now:
            if parent is None:
                return False
            if parent.key in known:
                return True
            parent = now.get(parent.parent_pid)
        return False

    def _is_marked(self, process: Process) -> bool:
        if process.key not in self._marked:
            where = _working_directory(process.pid)
            texts = (_read(process.pid, "cmdline"), _read(process.pid, "environ"), where)
            marked = any(self._mark in text for text in texts)
            if not marked and not texts[0]:
                return False  # between fork and exec, or a kernel thread: look again next time
            self._marked[process.key] = marked
        return self._marked[process.key]


def kill(processes: list[Process]) -> None:
    """SIGKILL each that is still the process it was."""
    for process in processes:
        current = _process(process.pid)
        if current is not None and current.key == process.key:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def uses_file(pid: int, path: Path) -> bool:
    """Whether a process has `path` mapped or open, as far as we may look."""
    name = os.fsencode(path)
    try:
        descriptors = list((PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False
    return any(_link(descriptor) == name for descriptor in descriptors) or name in _read(pid, "maps")


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]


def _process(pid: int) -> Process | None:
    stat = _read(pid, "stat").decode(errors="replace")
    if not stat:
        return None
    # pid (name, which may hold blanks and brackets) state ppid … the start time is the 22nd field
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    return Process(pid=pid, start_ticks=int(fields[19]), parent_pid=int(fields[1]), name=name)


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"{PROC}/{pid}/{name}", "rb", buffering=0) as file:  # looked at for each process, twice a test
            return file.readall()
    except OSError:  # gone, or not ours to read
        return b""


def _working_directory(pid: int) -> bytes:
    return _link(PROC / str(pid) / "cwd")


def _link(path: Path) -> bytes:
    try:
        return os.fsencode(os.readlink(path))
    except OSError:
        return b""
