"""A process in waiting for each writer: when the one in use dies, the next need not be started first.

Starting a Ray worker and importing everything takes about a second of a core, which would be a good part of an outage
that needs a new process. A spare is an instance actor like any other, idle, in the AZ where the instance runs; it has
prepared the engine and holds nothing: about 100 MB of memory is its price, which readers are not worth, as others take
their sessions. It is made a while after its instance was opened, when that has settled, and nothing depends on it: one
that is not there, is elsewhere, or does not answer at once is passed over.

The two processes of an instance have two names in turn (`names`), so that a spare that takes over keeps its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from aurora_ray.compute.config import EngineChoice

MAKE_AFTER_S: Final = 8.0
ANSWER_WITHIN_S: Final = 0.3
OTHER: Final = "~"  # no instance id ends with it

_log = logging.getLogger(__name__)


class Process(Protocol):
    """What a spare has to offer."""

    async def answers(self, timeout_s: float) -> bool:
        """Whether it is there and at work."""

    async def abort(self) -> None:
        """Ends it, even if it is stopped."""


P = TypeVar("P", bound=Process)
P_co = TypeVar("P_co", bound=Process, covariant=True)


class Make(Protocol[P_co]):
    """Starts an idle process for an instance, in an AZ and on a machine (empty: any)."""

    def __call__(self, instance_id: str, az: str, choice: EngineChoice, host: str, /) -> Awaitable[P_co]:
        """Raises NoPlaceError."""


@dataclass(frozen=True, slots=True)
class _Spare(Generic[P]):
    process: P
    az: str
    choice: EngineChoice
    host: str  # that was asked for; empty: any


class Spares(Generic[P]):
    """`make` starts an idle process for an instance, in an AZ and on a machine (empty: any). Belongs to one event loop.

    What is done for one instance is done in turn: nobody takes, or finds by its name, what another is just making.
    """

    def __init__(self, make: Make[P], after_s: float = MAKE_AFTER_S) -> None:
        self._make = make
        self._after_s = after_s
        self._spares: dict[str, _Spare[P]] = {}
        self._later: dict[str, tuple[asyncio.Task[None], str]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def take(
        self,
        instance_id: str,
        az: str,
        choice: EngineChoice,
        otherwise: Callable[[], Awaitable[P]] | None = None,
    ) -> P | None:
        """The instance's spare, if there is one that fits and answers; one that does not is ended. `otherwise` gives
        the process if there is no spare."""
        self._forget_later(instance_id, unless_in=az)
        async with self._turns[instance_id]:
            self._forget_later(instance_id)
            spare = self._spares.pop(instance_id, None)
            if spare is not None:
                if (spare.az, spare.choice) == (az, choice) and await spare.process.answers(ANSWER_WITHIN_S):
                    return spare.process
                await spare.process.abort()
            return await otherwise() if otherwise is not None else None

    def make_later(self, instance_id: str, az: str, choice: EngineChoice) -> None:
        """Starts one after a while; none is there (`take`). It is tried once: the instance's next start tries again."""
        self._forget_later(instance_id)
        making = self._make_later(instance_id, az, choice)
        self._later[instance_id] = asyncio.create_task(making, name=f"spare of {instance_id}"), az

    async def ready(self, instance_id: str, az: str, choice: EngineChoice, host: str = "") -> None:
        """Makes sure that there is one in this AZ, and on this machine if one is named, whose instance is going to move
        there. Raises what `make` does."""
        self._forget_later(instance_id, unless_in=az if not host else "")
        async with self._turns[instance_id]:
            spare = self._spares.get(instance_id)
            if spare is None or (spare.az, spare.choice) != (az, choice) or host not in ("", spare.host):
                await self._drop(instance_id)
                await self._keep(instance_id, az, choice, host)

    async def drop(self, instance_id: str) -> None:
        """The instance needs none any more."""
        self._forget_later(instance_id)
        async with self._turns[instance_id]:
            await self._drop(instance_id)

    async def _drop(self, instance_id: str) -> None:
        self._forget_later(instance_id)
        spare = self._spares.pop(instance_id, None)
        if spare is not None:
            await spare.process.abort()

    def _forget_later(self, instance_id: str, unless_in: str = "") -> None:
        """What has begun in that AZ is let finish; what has not, or is elsewhere, is cancelled, its process ended."""
        later, az = self._later.get(instance_id, (None, ""))
        if later is None or (az == unless_in and self._turns[instance_id].locked()):
            return
        del self._later[instance_id]
        later.cancel()

    async def _make_later(self, instance_id: str, az: str, choice: EngineChoice) -> None:
        await asyncio.sleep(self._after_s)
        async with self._turns[instance_id]:
            if instance_id in self._spares:
                return
            with contextlib.suppress(AuroraError):  # no place, or its name is not free yet: then there is none
                await self._keep(instance_id, az, choice)
                _log.info("a process is in waiting for %s", instance_id)

    async def _keep(self, instance_id: str, az: str, choice: EngineChoice, host: str = "") -> None:
        assert instance_id not in self._spares, "it would be lost, and never ended"  # noqa: S101
        self._spares[instance_id] = _Spare(await self._make(instance_id, az, choice, host), az, choice, host)


def names(prefix: str, instance_id: str) -> tuple[str, str]:
    """The two names that an instance's processes have."""
    return f"{prefix}{instance_id}", f"{prefix}{instance_id}{OTHER}"


def instance_of(prefix: str, name: str) -> str:
    """The inverse, for either name."""
    return name.removeprefix(prefix).removesuffix(OTHER)
