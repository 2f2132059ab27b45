from pathlib import Path

import pytest

from aurora_ray.engine.postgres.settings import (
    VOLATILE_PATTERNS,
    check_parameters,
    default_settings,
    forced_settings,
)
from aurora_ray.engine.sizes import LEAST_SIZE
from aurora_ray.errors import ConfigurationError


def defaults(major: int) -> dict[str, str]:
    return default_settings(major=major, size=LEAST_SIZE)


def forced(major: int) -> dict[str, str]:
    return forced_settings(major=major, host="127.0.0.1", port=5433, socket_dirs=[Path("run/so,cket")])


def test_names_are_taken_as_postgresql_takes_them() -> None:
    assert check_parameters({"Checkpoint-Timeout": "5min"}, 18) == {"checkpoint_timeout": "5min"}


@pytest.mark.parametrize("major", [16, 18])
def test_what_is_forced_is_refused_to_users_and_what_is_a_default_is_not(major: int) -> None:
    for name in forced(major):
        with pytest.raises(ConfigurationError, match=f"{name} is fixed by the"):
            check_parameters({name.upper(): "on"}, major)
    assert check_parameters(defaults(major), major) == defaults(major)
    assert not defaults(major).keys() & forced(major).keys()


@pytest.mark.parametrize("name", ["max_connections", "shared_buffers", "wal_level", "jit", "max_prepared_transactions"])
def test_what_users_set_is_on_no_command_line(name: str) -> None:
    assert name not in forced(18)
    assert name in defaults(18)


def test_wal_level_must_serve_readers() -> None:
    assert check_parameters({"wal_level": "logical"}, 18)
    with pytest.raises(ConfigurationError, match="wal_level"):
        check_parameters({"wal_level": "minimal"}, 18)


def test_versions_get_what_they_know() -> None:
    assert forced(18)["io_method"] == "worker"
    assert not {"io_method", "io_workers"} & (forced(16).keys() | defaults(16).keys())


def test_a_directory_is_quoted_as_a_list_element() -> None:
    assert forced(18)["unix_socket_directories"] == '"run/so,cket"'


def test_no_volatile_pattern_can_match_what_a_user_names() -> None:
    # A replication slot's directory and files; kinds that look at single components must not catch them.
    for kind, pattern in VOLATILE_PATTERNS:
        assert kind in ("exact", "below") or "." in pattern
