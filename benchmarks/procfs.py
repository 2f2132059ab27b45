"""What processes used, from /proc: CPU seconds, bytes written to disk, memory. Linux only, as the rest.

CPU time and written bytes of a child that has ended count for the parent that waited for it, so a tree's totals never
go backwards while its root lives: backends come and go, and what they used stays with the postmaster.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_SECTOR_BYTES = 512  # in this file, whatever the device's own are
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Component:
    """A named part of a system: processes and, if `tree`, all that descend from them."""

    name: str
    pids: tuple[int, ...]
    tree: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals of a component since its processes began; subtract two for what happened between.

    `written_bytes` are pages made dirty, to be written back some time. A kernel with large folios counts whole folios:
    take them as an upper bound.
    """

    cpu_s: float
    written_bytes: int

    def since(self, before: Usage) -> Usage:
        """What was used after `before`."""
        return Usage(round(self.cpu_s - before.cpu_s, 3), self.written_bytes - before.written_bytes)


def usage(component: Component) -> Usage:
    """What the component has used so far. Processes that are gone count as nothing."""
    cpu_s, written = 0.0, 0
    for pid in members(component):
        cpu_s += _cpu_s(pid, with_children=component.tree)
        written += _io(pid, "write_bytes")
    return Usage(cpu_s, written)


def memory_bytes(component: Component) -> int:
    """Proportional set size: shared pages are divided among those who share them, so that sums mean something."""
    return sum(_memory(pid) for pid in members(component))


def members(component: Component) -> list[int]:
    """The living processes of a component."""
    return _descendants(component.pids) if component.tree else list(component.pids)


def parent_of(pid: int) -> int:
    """The process that started it. Raises IndexError if it is gone."""
    return int(_stat(pid)[1])


def machine_cpu_s() -> float:
    """CPU seconds that the whole machine has spent on anything (not idle, not waiting, not stolen)."""
    fields = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def loopback() -> tuple[int, int]:
    """(packets, bytes) that have crossed the loopback interface, the whole machine's."""
    for line in (_PROC / "net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            fields = rest.split()
            return int(fields[9]), int(fields[8])
    return 0, 0


def device_written_bytes(path: Path) -> int:
    """What anyone has written to the disk under `path`; 0 where the kernel does not tell (a stacked file system)."""
    device = os.stat(path).st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except OSError:
        return 0
    return int(fields[6]) * _SECTOR_BYTES


def socket_inodes(pid: int) -> set[int]:
    """Of the sockets that a process has open."""
    found = set()
    for descriptor in (_PROC / str(pid) / "fd").iterdir():
        try:
            kind, _, inode = os.readlink(descriptor).partition(":[")
        except OSError:  # closed meanwhile
            continue
        if kind == "socket":
            found.add(int(inode[:-1]))
    return found


def _descendants(roots: Iterable[int]) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir(_PROC):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children[int(fields[1])].append(int(entry))
    found: dict[int, None] = {}  # a root may descend from another one
    queue = list(roots)
    while queue:
        pid = queue.pop()
        if pid not in found:
            found[pid] = None
            queue += children.get(pid, ())
    return list(found)


def _stat(pid: int) -> list[str]:
    """The fields after the name: state is 0, the parent 1, utime, stime, cutime, cstime 11 to 14."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _cpu_s(pid: int, *, with_children: bool) -> float:
    fields = _stat(pid)
    return sum(int(field) for field in fields[11 : 15 if with_children else 13]) / _TICKS_PER_S


def _io(pid: int, name: str) -> int:
    for line in _read(pid, "io").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value)
    return 0


def _memory(pid: int) -> int:
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(pid: int, name: str) -> str:
    try:
        return (_PROC / str(pid) / name).read_text()
    except OSError:  # gone, or not ours to read
        return ""
