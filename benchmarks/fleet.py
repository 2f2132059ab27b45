"""A fleet as a user has it: made and driven by the `aurora` command alone, in a directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import ROOT
from benchmarks.procfs import Component, memory_bytes, parent_of, usage

UP_TIMEOUT_S: Final = 300.0
CALL_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class UserFleet:
    """One data directory; `environment` is added to that of each command, which is that of the checkout at `root`."""

    data_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    root: Path = ROOT
    python: str = sys.executable

    def run(self, *words: str, timeout_s: float = CALL_TIMEOUT_S, check: bool = True) -> str:
        """What a command prints. Raises RuntimeError with what it complains of, unless nobody wants to know."""
        done = subprocess.run(
            [self.python, "-m", "aurora_ray.cli.main", *words],
            env={
                **os.environ,
                "AURORA_DATA_DIR": str(self.data_dir),
                "AURORA_METRICS_PORT": "0",  # several fleets of a run would look for each other's
                **self.environment,
            },
            capture_output=True,
            text=True,
            cwd=self.root,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"aurora {' '.join(words)}: {done.stderr.strip()[-800:]}")
        return done.stdout

    def up(self, *words: str) -> dict[str, Any]:
        """Its status, once it serves."""
        status: dict[str, Any] = json.loads(self.run("up", *words, "--json", timeout_s=UP_TIMEOUT_S))
        return status

    def status(self) -> dict[str, Any]:
        """As it is now."""
        status: dict[str, Any] = json.loads(self.run("status", "--json"))
        return status

    def json(self, *words: str, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """What a command says in JSON."""
        return json.loads(self.run(*words, "--json", timeout_s=timeout_s))

    def down(self) -> None:
        """Stopped; its data stays."""
        self.run("down", timeout_s=UP_TIMEOUT_S, check=False)

    def destroy(self) -> None:
        """Stopped and removed."""
        self.run("down", "--destroy", "--yes", timeout_s=UP_TIMEOUT_S, check=False)


@dataclass(frozen=True, slots=True)
class FleetProcesses:
    """All processes of the fleet in a data directory: Ray's mark is in their environment, or, where a title was written
    over that, in their parent's; and all that descend from these: engines have an environment of their own.
    """

    data_dir: Path

    def memory_bytes(self) -> int:
        """What is shared counts by its share."""
        return memory_bytes(self._now())

    def cpu_s(self) -> float:
        """CPU seconds that they have used so far, with those of children that ended and were waited for."""
        return usage(self._now()).cpu_s

    def pids(self) -> tuple[int, ...]:
        """Those that Ray started, and their children."""
        return self._now().pids

    def _now(self) -> Component:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        marked = {pid for pid in pids if self._is_marked(pid)}
        return Component("fleet", tuple(pid for pid in pids if pid in marked or _parent(pid) in marked), tree=True)

    def _is_marked(self, pid: int) -> bool:
        try:
            mark = f"AURORA_RAY_OF={self.data_dir}".encode()
            return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _parent(pid: int) -> int:
    try:
        return parent_of(pid)
    except IndexError:
        return 0
