"""The parameters that a PostgreSQL knows, asked from the program itself, and a check of what somebody wants to set."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT
from aurora_ray.engine.postgres.settings import canonical, refusal
from aurora_ray.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.engine.base import EngineInstall

ASK_TIMEOUT_S: Final = 30.0
AT_RESTART: Final = "postmaster"  # the context of what has its effect at the next start only


@dataclass(frozen=True, slots=True)
class Known:
    """A parameter: `context` says when it can be changed, see pg_settings."""

    name: str
    context: str
    kind: str
    default: str
    description: str


def catalogue(install: EngineInstall) -> dict[str, Known]:
    """All that the program lists, by name. Raises ConfigurationError. Blocks for some milliseconds."""
    known = {}
    for line in _ask(install, "--describe-config").splitlines():
        fields = line.split("\t")
        if len(fields) >= 8:
            known[fields[0].lower()] = Known(fields[0].lower(), fields[1], fields[3], fields[4], fields[7])
    return known


def check_changes(install: EngineInstall, changes: Mapping[str, str | None]) -> dict[str, str]:
    """What each change needs: "dynamic" or "pending-reboot", by canonical name; a value of None is a reset.

    Raises UsageError for an unknown name, a value that the program does not take, or what is not the user's to set.
    """
    known = catalogue(install)
    needs: dict[str, str] = {}
    for name, value in canonical({name: value or "" for name, value in changes.items()}).items():
        reset = {key.strip().lower().replace("-", "_") for key, new in changes.items() if new is None}
        if name not in reset:
            why = refusal(name, value, install.major)
            if why is not None:
                raise UsageError(why)
            _check_value(install, name, value)
        context = known[name].context if name in known else ""
        needs[name] = "pending-reboot" if context == AT_RESTART else "dynamic"
    return needs


def _check_value(install: EngineInstall, name: str, value: str) -> None:
    """By having the program read it. An extension's parameter (with a dot) is known to nobody before its library is."""
    if "\0" in value or "\n" in value:
        raise UsageError(f"the value of {name} must be one line")
    with tempfile.TemporaryDirectory() as empty:
        _ask(install, "-C", name, "-D", empty, "-c", "config_file=/dev/null", "-c", f"{name}={value}")


def _ask(install: EngineInstall, *arguments: str) -> str:
    command = [str(install.bin_dir / "postgres"), *arguments]
    try:
        done = subprocess.run(
            command,
            env={**BASE_ENVIRONMENT, "LC_ALL": "C"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=ASK_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"{command[0]} does not run: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "FATAL:" in line or "HINT:" in line]
        raise UsageError(" ".join(line.partition(":  ")[2] for line in lines) or done.stderr.strip())
    return done.stdout
