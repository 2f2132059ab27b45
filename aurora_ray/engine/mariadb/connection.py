"""Sessions by a connection string (see client.py)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

from aurora_ray.engine.mariadb.credentials import read_options
from aurora_ray.errors import ConfigurationError

CONNECT_TIMEOUT_S: Final = 30
_OPTION = re.compile(r"--([a-z-]+)=(.*)", re.DOTALL)


def options_of(dsn: str) -> dict[str, str]:
    """What a connection string says, the option file's content included. Raises ConfigurationError."""
    given = {match[1]: match[2] for word in shlex.split(dsn) if (match := _OPTION.fullmatch(word))}
    path = given.pop("defaults-file", "")
    try:
        return {**(read_options(Path(path)) if path else {}), **given}
    except OSError as error:
        raise ConfigurationError(f"{path}, with the password, cannot be read: {error.strerror}") from error


def sentence(error: Exception) -> str:
    """What a server or the driver complained of."""
    return str(error.args[-1] if error.args else error).strip().replace("\n", " ")


def connect(dsn: str, **more: Any) -> Any:
    """A session of PyMySQL, in autocommit mode. Raises what that raises, and ConfigurationError."""
    import pymysql

    options = options_of(dsn)
    return pymysql.connect(
        host=options.get("host", "localhost"),
        port=int(options.get("port", "3306")),
        user=options.get("user", ""),
        password=options.get("password", ""),
        unix_socket=options.get("socket") or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        autocommit=True,
        **more,
    )
