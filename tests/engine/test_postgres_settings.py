from pathlib import Path

import pytest

from aurora_ray.engine.postgres_settings import VOLATILE_PATTERNS, server_settings
from aurora_ray.errors import ConfigurationError


def settings(major: int = 18, **parameters: str) -> dict[str, str]:
    return server_settings(
        major=major,
        host="127.0.0.1",
        port=5433,
        socket_dir=Path("run/so,cket"),
        shared_buffers_bytes=64 << 20,
        max_connections=50,
        parameters=parameters,
    )


def test_parameters_beat_the_tuning_only() -> None:
    assert settings()["checkpoint_timeout"] == "60s"
    assert settings(Checkpoint_Timeout="5min")["checkpoint_timeout"] == "5min"
    assert settings(work_mem="8MB", wal_level="logical").items() >= {"work_mem": "8MB", "wal_level": "logical"}.items()
    for name in ("fsync", "FULL_PAGE_WRITES", "restart_after_crash", "io_method", "port"):
        with pytest.raises(ConfigurationError, match=f"{name.lower()} is fixed"):
            settings(18, **{name: "on"})
    with pytest.raises(ConfigurationError, match="wal_level"):
        settings(wal_level="minimal")


def test_versions_get_what_they_know() -> None:
    assert settings(18)["io_method"] == "worker"
    assert not {"io_method", "io_workers"} & settings(16).keys()


def test_a_directory_is_quoted_as_a_list_element() -> None:
    assert settings()["unix_socket_directories"] == '"run/so,cket"'


def test_no_volatile_pattern_can_match_what_a_user_names() -> None:
    # A replication slot's directory and files; kinds that look at single components must not catch them.
    for kind, pattern in VOLATILE_PATTERNS:
        assert kind in ("exact", "below") or "." in pattern
