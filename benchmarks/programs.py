"""Runs a load generator's program to its end, and says what it printed and what CPU it took."""

from __future__ import annotations

import os
import re
import select
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Final

from aurora_ray.errors import AuroraError

GRACE_S: Final = 60.0  # for connecting, and for the transactions that are under way when the time is up
_SAID: Final = 800


class LoadError(AuroraError):
    """The load could not be run, or did not run to its end."""


def run_program(command: Sequence[str], *, timeout_s: float) -> tuple[str, float]:
    """(what it printed, CPU seconds). Raises LoadError if it fails, or does not end in time: it is killed then."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            raise LoadError(f"cannot run {command[0]}: {error.strerror}") from error
        try:
            _wait_exit(child.pid, timeout_s)
        except BaseException as error:
            child.kill()
            child.wait()
            if isinstance(error, TimeoutError):
                raise LoadError(f"{command[0]} did not end within {timeout_s:g} s") from None
            raise
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode != 0:
        raise LoadError(f"{command[0]} ended with {child.returncode}: {text.strip()[-_SAID:]}")
    return text, used.ru_utime + used.ru_stime


def find(pattern: str, text: str, default: str | None = None) -> str:
    """The first group of the first match. Raises LoadError where there is none and no default."""
    match = re.search(pattern, text)
    if match is not None:
        return match[1]
    if default is None:
        raise LoadError(f"the load generator said nothing that matches {pattern!r}: {text.strip()[-_SAID:]}")
    return default


def _wait_exit(pid: int, timeout_s: float) -> None:
    """Waits without reaping, so that wait4 can tell afterwards what the process used."""
    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)
    if not ready:
        raise TimeoutError
