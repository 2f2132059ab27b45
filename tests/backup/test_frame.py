"""Objects are what they were, under their own name, for who has the key; or an error says which of it is not so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aurora_ray.backup.frame import Key, unwrap, wrap
from aurora_ray.errors import ConfigurationError, MalformedError

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER = Key(bytes(32)), Key(bytes(31) + b"\1")
CONTENT = b"content " * 100


@pytest.mark.parametrize("key", [None, KEY])
def test_what_is_wrapped_is_unwrapped_and_smaller(key: Key | None) -> None:
    data = wrap("a/b", CONTENT, key)
    assert unwrap("a/b", data, key) == CONTENT
    assert len(data) < len(CONTENT)


@pytest.mark.parametrize("key", [None, KEY])
def test_no_bit_can_change_unnoticed(key: Key | None) -> None:
    data = wrap("a/b", CONTENT, key)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 4
        with pytest.raises((MalformedError, ConfigurationError)):
            unwrap("a/b", bytes(changed), key)
    for length in range(len(data)):
        with pytest.raises(MalformedError):
            unwrap("a/b", data[:length], key)


def test_another_key_no_key_and_another_name_are_refused() -> None:
    data = wrap("a/b", CONTENT, KEY)
    assert CONTENT[:8] not in data
    for name, key in (("a/b", OTHER), ("a/b", None), ("a/c", KEY)):
        with pytest.raises(ConfigurationError, match="key"):
            unwrap(name, data, key)


def test_a_key_is_read_from_a_private_file_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigurationError, match="openssl rand"):
        Key.load(path)
    path.write_text("ab" * 32)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Key.load(path)
    path.chmod(0o600)
    data = wrap("a", CONTENT, Key.load(path))
    assert unwrap("a", data, Key.load(path)) == CONTENT
