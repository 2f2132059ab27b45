"""A process in waiting for whichever instance needs one next: a clone's, a look's at the past, a new reader's.

A Ray worker takes most of a second to start and to import everything, longer than all else that a clone takes. So one
instance actor that is nobody's yet is kept a fleet, about 100 MB. It becomes an instance's by what is opened in it.

Ray does not rename actors. So whose one has become is written into Ray's own store, where the names of actors are too,
before anything is opened in it: by that the next control plane finds it. One of which nothing is written there was
never asked to open anything, and holds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar
from uuid import uuid4

from ray.experimental import internal_kv

from aurora_ray.errors import AuroraError
from aurora_ray.ray.spares import Process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PREFIX: Final = "waiting-"
MAKE_AFTER_S: Final = 10.0  # behind the spare of whoever was opened
ANSWER_WITHIN_S: Final = 1.0  # as long as it takes to start one
STORE: Final = b"aurora-ray"  # Ray's name for a part of its store

_log = logging.getLogger(__name__)


class Anyones(Process, Protocol):
    """What a process in waiting for anyone has to offer."""

    @property
    def name(self) -> str:
        """Of its actor."""

    async def offers(self, az: str) -> bool:
        """Whether it runs on a machine of this AZ."""


P = TypeVar("P", bound=Anyones)


class Whose(Protocol):
    """Whose a process in waiting has become."""

    async def note(self, name: str, instance_id: str) -> None:
        """It is this instance's from now on. Raises RaySystemError and the like if that cannot be noted."""

    async def forget(self, name: str, instance_id: str) -> None:
        """The process is gone."""

    async def names_of(self, instance_id: str) -> list[str]:
        """Of actors that are this instance's."""

    async def all(self) -> dict[str, str]:
        """Instance by name."""


class WhoseInRay:
    """In the store of the connected Ray cluster. `namespace` is the fleet's."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    async def note(self, name: str, instance_id: str) -> None:
        """See Whose."""
        await asyncio.to_thread(internal_kv._internal_kv_put, self._key(instance_id, name), b"", True, namespace=STORE)

    async def forget(self, name: str, instance_id: str) -> None:
        """See Whose."""
        await asyncio.to_thread(internal_kv._internal_kv_del, self._key(instance_id, name), namespace=STORE)

    async def names_of(self, instance_id: str) -> list[str]:
        """See Whose."""
        return [name for _, name in await self._listed(self._key(instance_id, ""))]

    async def all(self) -> dict[str, str]:
        """See Whose."""
        return {name: instance_id for instance_id, name in await self._listed(f"{self._namespace}/".encode())}

    def _key(self, instance_id: str, name: str) -> bytes:
        return f"{self._namespace}/{instance_id}/{name}".encode()

    async def _listed(self, prefix: bytes) -> list[tuple[str, str]]:
        keys = await asyncio.to_thread(internal_kv._internal_kv_list, prefix, namespace=STORE)
        found = []
        for key in sorted(keys):
            _, instance_id, name = key.decode().rsplit("/", 2)
            found.append((instance_id, name))
        return found


class Waiting(Generic[P]):
    """`make` starts an idle process by this name, in an AZ. Belongs to one event loop."""

    def __init__(self, make: Callable[[str, str], Awaitable[P]], whose: Whose, after_s: float = MAKE_AFTER_S) -> None:
        self._make = make
        self._whose = whose
        self._after_s = after_s
        self._process: P | None = None
        self._later: asyncio.Task[None] | None = None
        self._making = False

    async def take(self, instance_id: str, az: str) -> P | None:
        """The process, if there is one in this AZ that answers; it is the instance's from now on."""
        process = self._process
        if process is None:
            return None
        self._process = None  # before anything is waited for: nobody else gets it
        if not await process.offers(az):
            await self._keep(process)
            return None
        if not await process.answers(ANSWER_WITHIN_S):
            await process.abort()
            return None
        try:
            await self._whose.note(process.name, instance_id)
        except BaseException:
            await process.abort()  # nothing is in it, and it may be noted or not
            raise
        return process

    def make_later(self, az: str) -> None:
        """Has one made when nobody has asked for so long: a start has just taken place, and takes time."""
        if self._making or self._process is not None:
            return
        if self._later is not None:
            self._later.cancel()
        self._later = asyncio.create_task(self._make_later(az), name="a process in waiting")

    async def close(self) -> None:
        """Ends it."""
        if self._later is not None:
            self._later.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._later
        process, self._process = self._process, None
        if process is not None:
            await process.abort()

    async def _make_later(self, az: str) -> None:
        await asyncio.sleep(self._after_s)
        self._making = True
        try:
            await self._keep(await self._make(f"{PREFIX}{uuid4().hex[:12]}", az))
            _log.info("a process is in waiting for whoever needs one")
        except AuroraError as error:  # no place: then there is none
            _log.info("no process is in waiting: %s", error)
        finally:
            self._making = False

    async def _keep(self, process: P) -> None:
        """Has it wait, unless another one does by now."""
        if self._process is None:
            self._process = process
        else:
            await process.abort()
