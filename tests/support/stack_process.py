"""A child process that tests kill, stop and continue with real signals. It never outlives the test process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.polling import poll_until_blocking

ROOT = Path(__file__).resolve().parents[2]
END_TIMEOUT_S = 20.0


class ChildProcess:
    """`python -m module arguments…`, with what it prints in `out_path` and what it logs in `log_path`.

    It is killed by the kernel when we end, however we end.
    """

    def __init__(self, name: str, out_path: Path, log_path: Path) -> None:
        self.name = name
        self.out_path = out_path
        self.log_path = log_path
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def spawn(self, arguments: Sequence[str]) -> None:
        """Starts it anew; the one before must have ended."""
        assert not self.alive, f"{self.name} runs already"
        command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", *arguments]
        with self.out_path.open("wb") as out, self.log_path.open("ab") as log:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=ROOT)
        self._stopped = False

    @property
    def pid(self) -> int:
        """Of the process now or last running."""
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (or is stopped by a signal)."""
        return self._child is not None and self._child.poll() is None

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return None if self._child is None else self._child.poll()

    def first_line(self) -> str | None:
        """What it printed first, once the line is whole."""
        line = self.out_path.read_text().partition("\n")
        return line[0] if line[1] else None

    def wait_line(self, timeout_s: float) -> str:
        """The first line that it prints. Raises AssertionError with the end of its log if it ends before."""
        poll_until_blocking(
            lambda: self.first_line() is not None or not self.alive, timeout_s, what=f"{self.name} is up"
        )
        line = self.first_line()
        assert line is not None, f"{self.name} ended with {self.returncode}:\n{self.log_tail()}"
        return line

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self.send_kill()
        self.wait(END_TIMEOUT_S)

    def send_kill(self) -> None:
        """SIGKILL, without waiting."""
        if self._child is not None:
            self._child.kill()

    def terminate(self) -> None:
        """SIGTERM: a request to end in order."""
        if self._child is not None:
            self._child.terminate()

    def stop(self) -> None:
        """SIGSTOP, and waits until it has taken effect."""
        os.kill(self.pid, signal.SIGSTOP)
        poll_until_blocking(lambda: not self.alive or _state(self.pid) == "T", what=f"{self.name} has stopped")
        self._stopped = True

    def resume(self) -> None:
        """SIGCONT after `stop`; harmless without."""
        if self._stopped and self.alive:
            os.kill(self.pid, signal.SIGCONT)
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether `stop` is in force."""
        return self._stopped and self.alive

    def wait(self, timeout_s: float) -> int:
        """Its return code."""
        assert self._child is not None
        return self._child.wait(timeout_s)

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        return ""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def children_of(pid: int) -> list[int]:
    """The direct children of a process that are alive."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and fields[0] not in "ZX":
                    found.append(int(entry))
    return found


def works_below(directory: Path) -> list[int]:
    """Processes whose working directory is `directory` or below it, as an engine's is its data directory."""
    found = []
    prefix = os.fspath(directory)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                cwd = os.readlink(f"/proc/{entry}/cwd").removesuffix(" (deleted)")
                if cwd == prefix or cwd.startswith(prefix + "/"):
                    found.append(int(entry))
    return found


def describe(pid: int) -> str:
    """What a process is and what it waits for."""
    wait = ""
    with contextlib.suppress(OSError):
        wait = Path(f"/proc/{pid}/wchan").read_text()
    return f"{pid} {title_of(pid)[:100]} {wait} ({_state(pid)})"


def title_of(pid: int) -> str:
    """Its command line, which PostgreSQL's processes use to say what they do; empty if it has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return ""


class Frozen:
    """Processes that are stopped (SIGSTOP) inside the `with` and continued after it, whatever happens."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def __enter__(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *error: object) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
