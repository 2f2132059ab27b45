import base64
import errno
import hashlib
import hmac
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aurora_ray.engine.postgres.credentials import ensure_passfile, verifies
from aurora_ray.errors import ConfigurationError


def test_the_password_is_made_once_and_is_private(data_dir: Path) -> None:
    path = data_dir / "secrets" / "pgpass"
    password = ensure_passfile(path, "postgres")
    assert len(password) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_passfile(path, "postgres") == password
    assert [entry.name for entry in path.parent.iterdir()] == ["pgpass"]


def test_all_callers_at_once_get_the_same_one(data_dir: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: ensure_passfile(data_dir / "pgpass", "postgres"), range(8)))
    assert len(made) == 1


def test_a_foreign_file_is_left_alone(data_dir: Path) -> None:
    path = data_dir / "pgpass"
    path.write_text("db:5432:*:someone:secret\n")
    with pytest.raises(ConfigurationError, match="has no line"):
        ensure_passfile(path, "postgres")
    assert path.read_text() == "db:5432:*:someone:secret\n"


def test_one_that_cannot_be_made_is_said_in_a_sentence(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `create` says on a full disk."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="pgpass cannot be had: No space left on device"):
        ensure_passfile(data_dir / "pgpass", "postgres")
    assert list(data_dir.iterdir()) == []


def test_a_verifier_knows_its_password() -> None:
    salt = b"0123456789abcdef"
    salted = hashlib.pbkdf2_hmac("sha256", b"right", salt, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    encoded = base64.b64encode(salt).decode(), base64.b64encode(stored).decode()
    verifier = f"SCRAM-SHA-256$4096:{encoded[0]}${encoded[1]}:c2VydmVy"
    assert verifies("right", verifier)
    assert not verifies("wrong", verifier)
    for other in (None, "", "md5abc", "SCRAM-SHA-256$x:y$z:w", "SCRAM-SHA-256$4096:!$!:!", verifier[1:]):
        assert not verifies("right", other)
