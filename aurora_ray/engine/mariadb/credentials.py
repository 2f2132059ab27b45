"""Passwords: made once, kept in files that only their owner can read, never on a command line or in a log.

The file is an option file, as `mariadb --defaults-extra-file=` and most drivers take it. The server is told a hash.
"""

from __future__ import annotations

import configparser
import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import make_file, replace_file
from aurora_ray.errors import UNDECODABLE, ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD_BYTES: Final = 24


def new_password() -> str:
    """No character in it that an option file would want quoted."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


def ensure_passfile(path: Path, user: str) -> str:
    """The password in the option file at `path`; made, with mode 0600, if the file is not there yet.

    Raises ConfigurationError for a file that is not ours in form.
    """
    try:
        return read_options(path)["password"]
    except FileNotFoundError:
        pass
    except KeyError:
        raise ConfigurationError(
            f"{path} has no password in its section [client]: restore it, or remove it to get a new password"
        ) from None
    password = new_password()
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    made = make_file(path, options_text({"user": user, "password": password}))
    return password if made else read_options(path)["password"]  # someone was faster


def write_passfile(path: Path, user: str, password: str) -> None:
    """Puts an option file with this password in the place of what is there. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace_file(path, options_text({"user": user, "password": password}))


def options_text(options: dict[str, str]) -> str:
    """An option file for clients. A value in quotes may have anything but a quote, a backslash and a new line."""
    lines = [f'{name}="{value}"' for name, value in options.items()]
    return "\n".join(["[client]", *lines, ""])


def read_options(path: Path) -> dict[str, str]:
    """The section [client] of an option file. Raises OSError, and ConfigurationError for what is none."""
    parser = configparser.RawConfigParser(allow_no_value=True, strict=False)
    try:
        parser.read_string(path.read_text())
        return {name: (value or "").strip('"') for name, value in parser.items("client")}
    except (configparser.Error, *UNDECODABLE) as error:
        raise ConfigurationError(f"{path} is no option file: {error}") from error


def native_hash(password: str) -> str:
    """What the server keeps of a password (mysql_native_password)."""
    inner = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return "*" + hashlib.sha1(inner, usedforsecurity=False).hexdigest().upper()
