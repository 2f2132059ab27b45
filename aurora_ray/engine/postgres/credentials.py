"""The superuser's password: made once, kept in a file only its owner can read, never on a command line or in a log.

The file is libpq's password file, so that clients find the password by themselves (`passfile=` in the DSN). In the
database lies a SCRAM verifier, computed on this side: the server never sees the password itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import make_file, replace_file
from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD_BYTES: Final = 24
_SCRAM: Final = "SCRAM-SHA-256"
_SALT_BYTES: Final = 16
_ITERATIONS: Final = 4096


def ensure_passfile(path: Path, user: str) -> str:
    """The password in the passfile at `path` for `user`; made, with mode 0600, if the file is not there yet.

    The entry holds for every host and port, since a cluster's endpoints move. Raises ConfigurationError for a file that
    is not ours in form, or cannot be read or made (a full disk).
    """
    try:
        return _password_in(path, user) if path.exists() else _made(path, user)
    except OSError as error:
        raise ConfigurationError(f"the password file {path} cannot be had: {error.strerror}") from error


def _made(path: Path, user: str) -> str:
    password = secrets.token_urlsafe(PASSWORD_BYTES)  # no character that the file format would want escaped
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    made = make_file(path, _line(user, password))
    return password if made else _password_in(path, user)  # someone was faster


def write_passfile(path: Path, user: str, password: str) -> None:
    """Puts a passfile with this password in the place of what is there. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace_file(path, _line(user, password))


def _line(user: str, password: str) -> str:
    return f"*:*:*:{user}:{password}\n"


def _password_in(path: Path, user: str) -> str:
    prefix = f"*:*:*:{user}:"
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith(prefix):
            return line.removeprefix(prefix)
    raise ConfigurationError(f"{path} has no line {prefix}…: restore it, or remove it to get a new password")


def make_verifier(password: str) -> str:
    """A new verifier of `password`, as the server would make it. The password is taken as it is, see `verifies`."""
    salt = secrets.token_bytes(_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"{_SCRAM}${_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def verifies(password: str, verifier: str | None) -> bool:
    """Whether `verifier` (pg_authid.rolpassword) is one of `password`. False for anything that is not SCRAM-SHA-256.

    Form: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey, the last three in base64 (RFC 5803). The password is taken
    as it is, without SASLprep: right for the ASCII passwords made here.
    """
    try:
        mechanism, parameters, keys = (verifier or "").split("$")
        iterations, salt = parameters.split(":")
        stored_key, _ = keys.split(":")
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        expected = base64.b64decode(stored_key)
    except ValueError:  # also base64's and int's
        return False
    return mechanism == _SCRAM and hmac.compare_digest(hashlib.sha256(client_key).digest(), expected)
