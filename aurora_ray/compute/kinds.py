"""How each kind of instance is run. One that nothing can run is refused, and never run as one of another kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from aurora_ray.compute.role import Role
from aurora_ray.errors import UnsupportedRoleError

if TYPE_CHECKING:
    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import InstanceConfig, InstanceStatus, Opened, Outcome
    from aurora_ray.engine.base import StopMode

T = TypeVar("T")


class Incarnation(Protocol):
    """One opening of an instance, whatever its kind."""

    async def start(self) -> Opened:
        """Opens it. What goes wrong is raised, and nothing is left."""

    def status(self) -> InstanceStatus:
        """What it is at."""

    async def do(self, command: Command[T]) -> T:
        """Carries out a command. Raises UsageError for one that its kind does not take."""

    async def stop(self, mode: StopMode, *, reopens: bool) -> Outcome:
        """Ends it; `reopens`: its place opens again, and somebody waits for that."""

    async def wait_ended(self) -> Outcome:
        """Returns when it has ended."""


def _writer(config: InstanceConfig) -> Incarnation:
    if config.restore is not None:
        from aurora_ray.compute.restoring import Restored

        return Restored(config)
    from aurora_ray.compute.writer import Writer  # its imports take a while

    return Writer(config)


def _reader(config: InstanceConfig) -> Incarnation:
    from aurora_ray.compute.reader import Reader

    return Reader(config)


def _backup(config: InstanceConfig) -> Incarnation:
    from aurora_ray.compute.backing import Backing

    return Backing(config)


def _replicator(config: InstanceConfig) -> Incarnation:
    from aurora_ray.compute.copier import Copier

    return Copier(config)


_RUN: Final[Mapping[Role, Callable[[InstanceConfig], Incarnation]]] = {
    Role.WRITER: _writer,
    Role.READER: _reader,
    Role.BACKUP: _backup,
    Role.REPLICATOR: _replicator,
}


def require_runnable(role: Role, instance_id: str) -> None:
    """Raises UnsupportedRoleError for a kind that nothing can run yet: opened as a writer, it would seal out the real
    one."""
    if role not in _RUN:
        raise UnsupportedRoleError(f"{instance_id} is a {role}, and nothing can run one yet")


def incarnation_of(config: InstanceConfig) -> Incarnation:
    """A new incarnation of the configured kind. Raises UnsupportedRoleError."""
    require_runnable(config.role, config.instance_id)
    return _RUN[config.role](config)
