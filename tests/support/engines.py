"""Which engines can be tested on this machine."""

from functools import cache

from aurora_ray.engine.mariadb.install import find_install
from aurora_ray.errors import ConfigurationError


@cache
def missing_engine() -> str:
    """Why there is no MariaDB on this machine; empty if there is one."""
    try:
        find_install()
    except ConfigurationError as error:
        return str(error)
    return ""
