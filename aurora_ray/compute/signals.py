"""Signals to processes of ours on this machine, for faults on purpose. What is not ours is refused.

A process is ours if its id and its start time are those that it told itself; everything it started is ours with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.compute.progress import children_of
from aurora_ray.errors import UsageError


def family(pid: int) -> list[int]:
    """The process and all that descend from it, it first."""
    found = [pid]
    for one in found:
        found.extend(child for child in children_of(one) if child not in found)
    return found


def send(pid: int, ticks: int, signo: int, *, resume_after_s: float | None = None) -> list[int]:
    """Signals the process and all its descendants, descendants first; which they were. Raises UsageError if it is gone.

    `resume_after_s`: a process of its own sends SIGCONT then, whatever has become of us.
    """
    if start_ticks(pid) != ticks:
        raise UsageError(f"process {pid} is not there any more, or is not ours")
    pids = family(pid)
    if resume_after_s is not None:
        _resume_later(pids, resume_after_s)
    for one in reversed(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signo)
    return pids


def _resume_later(pids: Sequence[int], seconds: float) -> None:
    # SIGCONT does nothing to a process that is not stopped: a number that was given to another one does no harm.
    words = " ".join(str(pid) for pid in pids)
    subprocess.Popen(
        ["sh", "-c", f"sleep {seconds:g}; for p in {words}; do kill -CONT $p; done 2>/dev/null"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


KILL = int(signal.SIGKILL)
STOP = int(signal.SIGSTOP)
CONTINUE = int(signal.SIGCONT)
