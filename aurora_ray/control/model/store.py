"""Where the declared state is kept: in files of the control volume, on the same six storage nodes as everything else.

Opening seals the volume, so of two control planes only the one that came last can save; the other gets FencedError and
must end. A save is one append, hence one flush: recovery keeps it whole or drops it whole. It writes a whole version to
a file of its own (state_file.py), so a save whose outcome is unknown cannot harm the next. The last VERSIONS_KEPT
versions can be read; where the newest is damaged, the one before it counts, and whoever opened it is told (`damaged`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from aurora_ray.control.model import state_file
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.state import Fleet, VolumeState
from aurora_ray.control.model.state_file import VERSIONS_KEPT, Content, Listing, Pages
from aurora_ray.errors import MalformedError
from aurora_ray.log.lineage import ROOT
from aurora_ray.log.record import Record
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
from aurora_ray.volume.write.volume import Volume

CLOSE_TIMEOUT_S: Final = 3.0
SAVE_TIMEOUT_S: Final = 30.0
USAGE_KEPT: Final = 2


class StateDamagedError(MalformedError):
    """No version of the control state can be read."""


@dataclass(frozen=True, slots=True)
class Version:
    """A saved state. `fleet` is None and `problem` says why if it cannot be used."""

    number: int
    saved_at_s: float
    nbytes: int
    fleet: Fleet | None
    problem: str = ""

    def report(self) -> dict[str, Any]:
        """Plain values, for people: nothing secret."""
        fleet = self.fleet
        return {
            "version": self.number,
            "saved_at_s": self.saved_at_s or None,
            "bytes": self.nbytes,
            "revision": fleet.revision if fleet is not None else None,
            "clusters": sorted(c.name for c in fleet.clusters) if fleet is not None else [],
            "problem": self.problem,
        }


def volume_spec(volume: VolumeState) -> VolumeSpec:
    """The declared volume as the volume client takes it."""
    groups = tuple(group.placement for group in volume.groups)
    lineage = volume.origin.lineage if volume.origin is not None else ROOT
    return VolumeSpec(volume.volume_id, volume.page_size, volume.group_bytes, groups, lineage)


class ControlStore:
    """The open control volume. `save` is called by one task at a time.

    `damaged`: versions newer than the one that was loaded, which cannot be used.
    """

    def __init__(
        self,
        volume: Volume,
        there: Listing,
        loaded: Version | None = None,
        damaged: Sequence[Version] = (),
        first: bytes | None = None,
    ) -> None:
        self.damaged = tuple(damaged)
        self.loaded = loaded
        self._volume = volume
        self._kept = list(there.numbers)  # versions that are in the log, whatever the outcome of their saves
        self._next = there.next_number
        self.usage = b""  # what was saved last of what was used
        self._usage_kept = list(there.usage)
        self._first = first  # the state in a file of format 1, until the first save
        self._saved: list[bytes] = []  # the pages of the last version known to be durable

    @classmethod
    async def open(
        cls,
        volume: VolumeState,
        nodes: Sequence[NodeAddress],
        *,
        timeout_s: float,
        on_fenced: Callable[[], None],
        choice: int | None = None,
        even_damaged: bool = False,
    ) -> tuple[Self, Fleet | None]:
        """Seals, recovers, reads the newest version that is whole, or the one chosen; no fleet if none was ever saved.

        Raises QuorumLostError, StateDamagedError if no version is whole (unless `even_damaged`: then there is no fleet,
        and the next save makes one), ConfigurationError if a newer program wrote it.
        """
        opened = await Volume.open(volume_spec(volume), nodes, timeout_s=timeout_s, on_fenced=on_fenced)
        try:
            async with asyncio.timeout(timeout_s):
                store = await cls._load(opened, choice=choice, even_damaged=even_damaged)
        except BaseException:
            await opened.close()
            raise
        return store, store.loaded.fleet if store.loaded is not None else None

    @classmethod
    async def _load(cls, volume: Volume, *, choice: int | None, even_damaged: bool) -> Self:
        if volume.tail_lsn == 0:
            return cls(volume, Listing())
        there = await state_file.listing(volume)
        usage = await _usage(volume, there)
        damaged: list[Version] = []
        for number in reversed([n for n in there.numbers if choice in (None, n)]):
            content = await state_file.read(volume, there, number, volume.spec.page_size)
            version = _version(content)
            if version.fleet is not None:
                store = cls(volume, there, version, damaged, content.state if content.first_format else None)
                store.usage = usage
                return store
            damaged.append(version)
        if even_damaged:
            return cls(volume, there, None, damaged)
        what = "; ".join(f"version {v.number}: {v.problem}" for v in damaged) or "there is no such version"
        raise StateDamagedError(f"no version of the control state can be used ({what}): see `aurora repair state`")

    @property
    def epoch(self) -> int:
        """The epoch of this control plane."""
        return self._volume.epoch

    async def save(self, fleet: Fleet, timeout_s: float = SAVE_TIMEOUT_S) -> int:
        """Makes the state durable on a write quorum; its LSN.

        Raises FencedError, MalformedError (nothing was saved), QuorumLostError: then the outcome is not known, and the
        next save is right whatever it turns out to be.
        """
        page_size = self._volume.spec.page_size
        states, kept = [pack(fleet)], list(self._kept)
        records: list[Record] = []
        if self._first is not None:
            states.insert(0, self._first)
            kept.remove(state_file.FIRST_FILE_ID)
            records += state_file.removing(state_file.FIRST_FILE_ID, first_format=True)
        for number, state in enumerate(states, self._next):
            pages = state_file.frame(state, number, time.time(), page_size)
            records += state_file.writing(number, pages, page_size)
            kept.append(number)
        for number in kept[:-VERSIONS_KEPT]:
            records += state_file.removing(number)
        tail_lsn = self._volume.tail_lsn
        try:
            lsn = await self._volume.append(records, timeout_s)
            self._saved = pages
        finally:
            # What was handed over comes before all that is handed over later, or neither is ever durable.
            if self._volume.tail_lsn != tail_lsn:
                self._kept, self._next, self._first = kept[-VERSIONS_KEPT:], kept[-1] + 1, None
        return lsn

    async def save_usage(self, counts: bytes, timeout_s: float = SAVE_TIMEOUT_S) -> None:
        """The same for what was used, which is no version of the state. Raises as `save` does."""
        page_size, number = self._volume.spec.page_size, self._next
        pages = state_file.frame(counts, number, time.time(), page_size)
        records = state_file.writing(number, pages, page_size, state_file.USAGE_PATH)
        kept = [*self._usage_kept, number]
        for old in kept[:-USAGE_KEPT]:
            records += state_file.removing(old, state_file.USAGE_PATH)
        tail_lsn = self._volume.tail_lsn
        try:
            await self._volume.append(records, timeout_s)
        finally:
            if self._volume.tail_lsn != tail_lsn:
                self._usage_kept, self._next = kept[-USAGE_KEPT:], number + 1

    async def versions(self) -> list[Version]:
        """All versions, newest first. Raises QuorumLostError."""
        return await read_versions(self._volume, self._volume.spec.page_size) if self._volume.tail_lsn else []

    @property
    def placements(self) -> tuple[GroupPlacement, ...]:
        """Who holds the control volume in truth."""
        return self._volume.spec.groups

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        """New addresses of storage nodes."""
        await self._volume.update_nodes(nodes)

    async def change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        """One step of a change of the control volume's members, as `Members.try_step`."""
        return await self._volume.members.try_step(placement, filled)

    async def close(self) -> None:
        """Closes the volume; what was saved is durable already, so streams that do not end in time are left behind."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._volume.close()


async def _usage(source: Volume, there: Listing) -> bytes:
    """The newest counts that are whole; empty if there are none."""
    for number in reversed(there.usage):
        content = await state_file.read(source, there, number, source.spec.page_size)
        if not content.problem:
            return content.state
    return b""


async def read_versions(source: Pages, page_size: int) -> list[Version]:
    """All versions in the control volume, newest first. Raises QuorumLostError."""
    there = await state_file.listing(source)
    return [_version(await state_file.read(source, there, n, page_size)) for n in reversed(there.numbers)]


def _version(content: Content) -> Version:
    """Raises ConfigurationError if a newer program wrote it: that is no damage."""
    fleet, problem = None, content.problem
    if not problem:
        try:
            fleet = unpack(content.state)
        except MalformedError as error:
            problem = str(error)
    return Version(content.number, content.saved_at_s, len(content.state), fleet, problem)
