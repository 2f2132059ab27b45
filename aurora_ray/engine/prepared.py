"""Things that are made once on a machine and then shared: whole, or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT
from aurora_ray.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount

LOCK_INTERVAL_S: Final = 0.02


def make_once(target: Path, account: EngineAccount, build: Callable[[], object], timeout_s: float) -> None:
    """Has `build` make the directory `target`, if it is not there.

    Any number of callers, in any number of processes, may ask at once: one makes it, the others wait. `build` makes it
    beside its place (`NAME.tmp-*`) and renames it; what an interrupted caller left there is removed. Raises
    ConfigurationError (the account cannot get at the directory), EngineError (the lock takes too long), and what
    `build` raises.
    """
    if target.is_dir():
        return
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    account.require_reachable(target.parent)
    with _locked(target.with_name(f".{target.name}.lock"), timeout_s):
        for leftover in target.parent.glob(f"{target.name}.tmp-*"):
            shutil.rmtree(leftover)
        if not target.is_dir():
            build()


def run_program(account: EngineAccount, command: Sequence[str], *, given: str | None = None, timeout_s: float) -> str:
    """What a program of an engine says on its standard output, run as the account, in English; `given` is its input.
    Raises EngineError with what it complained of, or ConfigurationError if it cannot be started."""
    name = command[0].rpartition("/")[2]
    try:
        done = subprocess.run(
            account.command(command),
            env={**BASE_ENVIRONMENT, "LC_ALL": "C"},
            cwd="/",
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{name} did not end within {timeout_s:g} s") from error
    except OSError as error:
        raise ConfigurationError(f"cannot start {name}: {error}") from error
    if done.returncode != 0:
        raise EngineError(f"{name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextmanager
def _locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Holds the lock file; the kernel lets go of it when a holder dies. Raises EngineError after the timeout."""
    deadline = time.monotonic() + timeout_s
    with path.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineError(f"another process has held {path} for {timeout_s:g} s: is it stuck?") from None
                time.sleep(LOCK_INTERVAL_S)
        yield
