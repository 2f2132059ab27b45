"""A fleet driven through the command, as a user does."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.engine.account import find_account
from aurora_ray.errors import ConfigurationError
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

UP_TIMEOUT_S = 150.0
CALL_TIMEOUT_S = 60.0


@dataclass
class CliFleet:
    """One data directory; `environment` is added to that of each command."""

    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "aurora_ray.cli.main", *arguments],
            env={**os.environ, "AURORA_DATA_DIR": str(self.data_dir), **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=scaled(timeout_s),
        )

    def check(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> str:
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"aurora {' '.join(arguments)}: {done.stderr}\n{self.trail()}"
        return done.stdout

    def json(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        return json.loads(self.check(*arguments, "--json", timeout_s=timeout_s))

    def up(self, *arguments: str) -> dict[str, Any]:
        status: dict[str, Any] = self.json("up", *arguments, timeout_s=UP_TIMEOUT_S)
        return status

    def status(self, name: str = "demo") -> dict[str, Any]:
        status: dict[str, Any] = self.json("status", name)
        return status

    def sql(self, statement: str) -> list[list[Any]]:
        rows: list[list[Any]] = self.json("sql", "-c", statement)["rows"]
        return rows

    def destroy(self) -> None:
        self.run("down", "--destroy", "--yes", timeout_s=UP_TIMEOUT_S)

    def trail(self) -> str:
        path = self.data_dir / "logs" / "control.log"
        return "\n".join(path.read_text().splitlines()[-40:]) if path.exists() else "(no control log)"

    # ---- what a client sees

    def execute(self, dsn: str, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(dsn, connect_timeout=5, autocommit=True) as session:
            cursor = session.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def until_writable(self, dsn: str, statement: str, timeout_s: float = 60.0) -> None:
        def writes() -> bool:
            try:
                self.execute(dsn, statement)
            except psycopg.Error:
                return False
            return True

        poll_until_blocking(writes, timeout_s, interval_s=0.05, what=f"writing works again\n{self.trail()}")

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Polls the status."""
        last: dict[str, Any] = {}
        with self.watching() as next_status:

            def holds() -> bool:
                last.clear()
                last.update(next_status())
                return bool(last) and condition(last)

            poll_until_blocking(holds, timeout_s, interval_s=0.05, what=f"{what}\n{self.trail()}")
        return last

    @contextmanager
    def watching(self, *name: str) -> Iterator[Callable[[], dict[str, Any]]]:
        """Gives a status that was not given yet, or an empty one: of `status --watch`, which joins Ray once."""
        arguments = (sys.executable, "-m", "aurora_ray.cli.main", "status", *name, "--watch", "--json")
        environment = {**os.environ, "AURORA_DATA_DIR": str(self.data_dir), **self.environment}
        running: list[subprocess.Popen[str]] = []

        def next_status() -> dict[str, Any]:
            if not running or running[0].poll() is not None:
                self._end(running)
                running.append(
                    subprocess.Popen(
                        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                    )
                )
            out = running[0].stdout
            assert out is not None
            line = out.readline() if select.select([out], [], [], 0.5)[0] else ""
            return json.loads(line) if line.endswith("\n") else {}

        try:
            yield next_status
        finally:
            self._end(running)

    def _end(self, running: list[subprocess.Popen[str]]) -> None:
        while running:
            watching = running.pop()
            watching.kill()
            watching.communicate(timeout=scaled(CALL_TIMEOUT_S))


def kill(pid: int) -> None:
    """As kill -9 does."""
    os.kill(pid, signal.SIGKILL)


def parent_of(pid: int) -> int:
    """An engine's is its instance's process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def pids_titled(title: str, data_dir: Path) -> list[int]:
    """Ray processes of this fleet whose title begins like this: a title hides the arguments, the token's path stays in
    the environment."""
    found = []
    token = f"RAY_AUTH_TOKEN_PATH={data_dir}/".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "cmdline").read_bytes().startswith(title.encode()) and _of_fleet(entry, token):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def pids_of_fleet(data_dir: Path) -> list[int]:
    """Every process of this fleet's Ray, those that are only starting included."""
    token = f"RAY_AUTH_TOKEN_PATH={data_dir}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if _of_fleet(entry, token):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _of_fleet(entry: Path, token: bytes) -> bool:
    """Itself, or the raylet that started it (a process title may be written over the environment)."""
    if token in (entry / "environ").read_bytes():
        return True
    stat = (entry / "stat").read_text()
    parent = stat.rpartition(")")[2].split()[1]
    return token in (Path("/proc") / parent / "environ").read_bytes()


@contextmanager
def fleet_at(path: Path, environment: Mapping[str, str] | None = None, *, up: bool = True) -> Iterator[CliFleet]:
    """A fleet of one's own, destroyed in the end; skips the test where the engine's account is missing."""
    try:
        find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))
    cli = CliFleet(path, dict(environment or {}))
    try:
        if up:
            cli.up()
        yield cli
    finally:
        cli.destroy()
        remove_tree(path)
