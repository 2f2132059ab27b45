"""What every engine adapter offers, and the words they share.

An engine is one unmodified database server on one data directory. The adapter knows how to initialise, configure,
start, watch and stop it; it knows nothing of volumes: whatever makes the data directory durable comes in through the
environment (`env`) and inherited file descriptors (`pass_fds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from aurora_ray.troubles import TroubleCode


@dataclass(frozen=True, slots=True)
class TreePart:
    """A directory that an installation needs, and where it goes in a copy of the installation."""

    source: Path
    relative: str


@dataclass(frozen=True, slots=True)
class EngineInstall:
    """One installed version of an engine.

    `parts` are the directories that make up the installation if it works from wherever it is copied to; empty if it
    only works where it is (a distribution's package).
    """

    kind: str
    version: str
    bin_dir: Path
    parts: tuple[TreePart, ...] = ()

    @property
    def major(self) -> int:
        """The number before the first dot."""
        return int(self.version.partition(".")[0])


class StopMode(StrEnum):
    """How to end an engine, from the politest to the one that always works."""

    FAST = "fast"  # ends sessions, writes a checkpoint; the next start needs no recovery
    IMMEDIATE = "immediate"  # ends at once without a checkpoint, in order; the next start recovers
    KILL = "kill"  # SIGKILL to every process


class VolatileKind(StrEnum):
    """How a pattern is compared with a path relative to the data directory."""

    EXACT = "exact"  # the whole path equals it
    BELOW = "below"  # the path lies below this directory; the directory itself is durable
    COMPONENT = "component"  # some component equals it, the last one included
    NAME = "name"  # fnmatch(3) of the last component


class VolatilePattern(NamedTuple):
    """Paths that an engine can lose at any moment without losing anything: they stay out of the volume."""

    kind: VolatileKind
    pattern: str


@dataclass(frozen=True, slots=True)
class EngineTrouble:
    """Something that an engine's user should know of; `sentence` says what it is and what helps."""

    code: TroubleCode
    sentence: str


@dataclass(frozen=True, slots=True)
class EngineExit:
    """How an engine ended: `returncode` is negative for a signal, `log_tail` its last lines, `ended_ns` Unix time."""

    pid: int
    returncode: int
    log_tail: str
    ended_ns: int = 0

    @property
    def clean(self) -> bool:
        """True if the engine shut down in order."""
        return self.returncode == 0


class Engine(Protocol):
    """One engine on one data directory. Methods that wait take a timeout and raise EngineError when it passes."""

    @property
    def install(self) -> EngineInstall:
        """The version in use."""

    @property
    def pid(self) -> int | None:
        """The main process while there is one."""

    @property
    def port(self) -> int:
        """The TCP port clients use; 0 before the start if it is to be chosen."""

    @property
    def socket_dir(self) -> Path:
        """Where sessions on the same machine find it."""

    @property
    def first_start(self) -> bool:
        """Whether no start on this data directory was ever noted (`note_good_start`) before the present one."""

    @property
    def troubles(self) -> tuple[EngineTrouble, ...]:
        """Of the present run."""

    @property
    def recovering(self) -> str:
        """How far a start is, in words; empty when there is nothing to say."""

    async def start(
        self,
        data_dir: Path,
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        timeout_s: float,
        moved: Callable[[], object] = ...,
    ) -> None:
        """Starts as writer and returns when it accepts statements. On failure nothing is left running.

        A start may take as long as it must: it fails when nothing has moved for `timeout_s`. `moved` is asked what the
        caller knows of: another value than before is a move.
        """

    async def repair(
        self, data_dir: Path, kinds: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], password: str
    ) -> None:
        """Mends what users did to the data directory, before a start. Each of `kinds` can be done again."""

    async def configure(self, parameters: Mapping[str, str]) -> None:
        """Other parameters of the cluster: in force at once where that can be, else at the next start."""

    async def note_good_start(self) -> None:
        """Keeps what this run was configured with, as the last that worked. After a start, and not in its way."""

    async def stop(self, mode: StopMode, *, timeout_s: float) -> EngineExit | None:
        """Ends every process and says how the run ended, None if there was none.

        A mode that does not finish within the timeout is followed by the next rougher one.
        """

    async def wait_exit(self) -> EngineExit:
        """Waits, without a limit, until the engine has ended for whatever reason and all its processes are gone."""

    async def check(self, *, timeout_s: float) -> None:
        """Whether it is alive. Needs no login, so nothing that users can change or lock closes it."""

    async def give_password(self, password: str, *, timeout_s: float) -> None:
        """Makes `password` the superuser's if it has none yet; one that its owner set stays."""

    def volatile_patterns(self) -> tuple[VolatilePattern, ...]:
        """What may stay out of the volume."""

    def dsn(self, passfile: Path, *, host: str | None = None, port: int | None = None) -> str:
        """The connection string for clients, without a secret in it."""
