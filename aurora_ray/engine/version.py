"""What an engine's program says of its version."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT
from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    import re
    from pathlib import Path

VERSION_TIMEOUT_S: Final = 30.0


def version_of(title: str, server: Path, pattern: re.Pattern[str], *options: str) -> str:
    """The group of `pattern` in what `server [options] --version` prints; `title` is the engine's, for people. Raises
    ConfigurationError."""
    try:
        done = subprocess.run(
            [str(server), *options, "--version"],
            env=dict(BASE_ENVIRONMENT),
            capture_output=True,
            text=True,
            check=True,
            timeout=VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"{server} does not run: {error}") from error
    match = pattern.search(done.stdout)
    if match is None:
        raise ConfigurationError(
            f"{server} --version answers {done.stdout.strip()!r}, which names no version of {title}"
        )
    return match[1]


def is_of(version: str, wanted: str | None) -> bool:
    """Whether a version is the one that is wanted, or begins with it; None: any."""
    return wanted is None or version == wanted or version.startswith(f"{wanted}.")
