"""How much memory an engine's processes may use together: a net below them, in a control group of version 1 or 2.

Sources: the kernel's admin-guide/cgroup-v2 (`memory.max`, `memory.current`, `memory.stat`) and cgroup-v1/memory
(`memory.limit_in_bytes`, `memory.usage_in_bytes`).

What keeps an engine at its capacity is its settings and the budget of its page cache. The net is for what escapes them:
then the kernel takes page cache back, and ends one of its own processes before anybody else's is touched. So it lies
above the capacity by MARGIN_SHARE, it is raised before an engine is given more, and it is lowered only after the
budget was: to no less than what could not be taken back at that moment and a margin, and again later, until it is where
it shall be. So no step down ends an engine. (`memory.high` of version 2 would stop it instead, for seconds, which looks
like a hang.)

In version 2 a process is in one group only: the net is in the one of the CPU quota, where both controllers are there.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Final

from aurora_ray.compute.cgroup import ROOT, Group, places
from aurora_ray.config import MIB

_log = logging.getLogger(__name__)
MARGIN_SHARE: Final = 0.25
MARGIN_BYTES_MIN: Final = 256 * MIB
# Not to be taken back at once, though it is no process's own: dirty pages have to be written first.
_TAKEN_BACK: Final = ("active_file", "inactive_file")
_NOT_YET: Final = {1: ("dirty", "writeback"), 2: ("file_dirty", "file_writeback")}
_LIMIT: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USAGE: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
_NONE: Final[dict[int, object]] = {1: -1, 2: "max"}
_UNBOUNDED: Final = 1 << 62


def net_of(memory_bytes: int) -> int:
    """Where the net of a capacity lies."""
    return memory_bytes + margin_of(memory_bytes)


def margin_of(memory_bytes: int) -> int:
    """What is left free, of whatever."""
    return max(int(MARGIN_SHARE * memory_bytes), MARGIN_BYTES_MIN)


class MemoryNet:
    """Of one engine; as `CpuQuota`, beside which it is held."""

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self._name = name
        self._root = root
        self._group: Group | None = None
        self._wanted_bytes = 0
        self._limit_bytes = _UNBOUNDED

    @property
    def in_force_bytes(self) -> int:
        """0: nothing."""
        return self._limit_bytes if self._group is not None and self._limit_bytes < _UNBOUNDED else 0

    @property
    def is_lowered(self) -> bool:
        """Whether the net lies where it shall."""
        return self._group is None or self._limit_bytes <= self._wanted_bytes

    def hold(self, pid: int, memory_bytes: int) -> None:
        """From now on: the process, all below it, and all that they start, with a capacity of so much memory."""
        for group in places("memory", self._name, self._root):
            if group.version == 2 and not group.directory.exists():
                continue  # the quota is elsewhere, and so the processes shall be
            try:
                group.make()
                group.write(_LIMIT[group.version], _NONE[group.version])
                group.take(pid)
            except OSError as error:
                _log.info("no bound on memory at %s: %s", group.directory, error)
                group.remove()
                continue
            self._group, self._limit_bytes = group, _UNBOUNDED
            self.change(memory_bytes)
            self.lower()
            return

    def change(self, memory_bytes: int) -> None:
        """For another capacity. Raises the net at once; to lower it is `lower`'s."""
        self._wanted_bytes = net_of(memory_bytes)
        if self._wanted_bytes > self._limit_bytes:
            self._set(self._wanted_bytes)

    def lower(self) -> None:
        """Lowers it as far as that ends nobody. To be called until `is_lowered`."""
        if self._group is None or self.is_lowered:
            return
        kept = self._kept_bytes(self._group)
        if kept is not None:
            self._set(min(self._limit_bytes, max(self._wanted_bytes, kept + margin_of(kept))))

    def free(self) -> None:
        """Nothing bounds it any more."""
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.write(_LIMIT[self._group.version], _NONE[self._group.version])
            self._limit_bytes = _UNBOUNDED

    def close(self) -> None:
        """The engine has ended. The next one takes a group over that is not gone yet."""
        if self._group is not None and self._group.remove():
            self._group = None

    def _set(self, limit_bytes: int) -> None:
        if self._group is None:
            return
        try:
            self._group.write(_LIMIT[self._group.version], limit_bytes)
        except OSError as error:  # it has ended; or version 1 could not take enough back: what was in force still is
            _log.info("the bound on memory at %s stays: %s", self._group.directory, error)
            return
        self._limit_bytes = limit_bytes

    def _kept_bytes(self, group: Group) -> int | None:
        """What could not be taken back now; None if that is not known."""
        try:
            usage = int(group.read(_USAGE[group.version]))
            lines = group.read("memory.stat").splitlines()
        except (OSError, ValueError):
            return None
        counts = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
        files = sum(counts.get(name, 0) for name in _TAKEN_BACK)
        dirty = sum(counts.get(name, 0) for name in _NOT_YET[group.version])
        return max(0, usage - max(0, files - dirty))
