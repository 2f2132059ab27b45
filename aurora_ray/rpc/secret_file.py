"""The fleet's secret on disk: `<data_dir>/secret`, one line of hexadecimal digits, for its owner's eyes only.

It is made whole or not at all and synced before anything relies on it, never replaced, and refused when others could
read it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import make_file
from aurora_ray.errors import ConfigurationError
from aurora_ray.rpc.admission import Secret

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "secret"
_BYTES_MAX: Final = 1024


def ensure_secret(path: Path) -> Secret:
    """The secret in that file, which is made if it is not there. Raises ConfigurationError."""
    with contextlib.suppress(FileNotFoundError):
        return load_secret(path)
    try:
        make_file(path, Secret.new().to_text() + "\n")  # if somebody else is faster, theirs counts
    except OSError as error:
        raise ConfigurationError(f"the fleet's secret cannot be written to {path}: {error.strerror}") from error
    return load_secret(path)


def load_secret(path: Path, what: str = "the fleet's secret") -> Secret:
    """`what`: that it is said to be. Raises ConfigurationError if the file is damaged or not private, and
    FileNotFoundError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor) as file:
            facts = os.fstat(descriptor)
            text = file.read(_BYTES_MAX)
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what} in {path} cannot be read: {error}") from error
    if facts.st_mode & 0o077 or facts.st_uid != os.geteuid():
        raise ConfigurationError(f"{path} is not private: it must be yours, with mode 0600 (`chmod 600 {path}`)")
    try:
        return Secret.from_text(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} is damaged: {error}; put back the file that was there") from error
