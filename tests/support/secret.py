"""The secret that the test process and all programs that it starts have in common."""

import tempfile
from pathlib import Path

from aurora_ray.rpc.admission import OURS, Secret
from aurora_ray.rpc.secret_file import ensure_secret, load_secret


def secret_path() -> Path:
    """Where it lies: programs that we start have our directory for temporary files."""
    return Path(tempfile.gettempdir()) / "fleet-secret"


def hold_secret() -> Path:
    """Has this process hold it, made if need be; its path."""
    path = secret_path()
    OURS.set(ensure_secret(path))
    return path


def take_secret() -> None:
    """The same in a program that we started."""
    OURS.set(load_secret(secret_path()))


def given_secret() -> None:
    """Sees that a process which runs storage nodes in itself has a secret: any will do, if nobody gave it one."""
    if not OURS.given:
        OURS.set(Secret.new())
