"""The engines that there are, by name. Nothing outside of this folder knows any of their names but from here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from aurora_ray.engine.base import Adapter

# Each has an ADAPTER.
_MODULES: Final = {"postgres": "aurora_ray.engine.postgres.adapter", "mysql": "aurora_ray.engine.mariadb.adapter"}
ENGINES: Final = tuple(_MODULES)
DEFAULT_ENGINE: Final = ENGINES[0]


def adapter(engine: str) -> Adapter:
    """What knows that engine; it is imported here, for imports take a while. Raises UsageError for an unknown name."""
    if engine not in _MODULES:
        raise UsageError(f"engine {engine!r} is not known; there is: {', '.join(ENGINES)}")
    found: Adapter = import_module(_MODULES[engine]).ADAPTER
    return found


def adapters() -> tuple[Adapter, ...]:
    """All of them."""
    return tuple(adapter(engine) for engine in ENGINES)
