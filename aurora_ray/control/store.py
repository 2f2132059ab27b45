"""Where the declared state is kept: a file in the control volume, on the same six storage nodes as everything else.

Opening seals the volume, so of two control planes only the one that came last can save; the other gets FencedError and
must end. A save is one append, hence one flush: recovery keeps it whole or drops it whole. Only pages that differ from
the last save are written. Old versions are the storage nodes' to collect.

The file (id 1, group 0), in pages of the volume's page size:
  0 u32 magic "ARC1" | 4 u32 crc32c of the state | 8 u64 length of the state | 16 the state (see model.py), then zeros
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Sequence
from typing import Final, Self

import google_crc32c

from aurora_ray.control.model import Fleet, VolumeState, pack, unpack
from aurora_ray.errors import MalformedError
from aurora_ray.log.record import Record, create, extent, page_full, size, truncate
from aurora_ray.volume.client import Volume
from aurora_ray.volume.membership import change_members
from aurora_ray.volume.spec import EXTENT_PAGES, GroupPlacement, NodeAddress, VolumeSpec

HEADER: Final = struct.Struct("<IIQ")
MAGIC: Final = 0x31435241  # "ARC1"
FILE_ID: Final = 1
FILE_PATH: Final = b"control-state"
CLOSE_TIMEOUT_S: Final = 3.0
STATE_BYTES_MAX: Final = 32 << 20  # one flush must carry it

assert HEADER.size == 16  # noqa: S101


def volume_spec(volume: VolumeState) -> VolumeSpec:
    """The declared volume as the volume client takes it."""
    groups = tuple(group.placement for group in volume.groups)
    return VolumeSpec(volume.volume_id, volume.page_size, volume.group_bytes, groups)


def frame(state: bytes, page_size: int) -> list[bytes]:
    """The file's pages, each of `page_size` bytes."""
    content = HEADER.pack(MAGIC, google_crc32c.value(state), len(state)) + state
    return [content[at : at + page_size].ljust(page_size, b"\0") for at in range(0, len(content), page_size)]


def pages_needed(first_page: bytes, page_size: int) -> int:
    """How many pages the file has, from its first. Raises MalformedError."""
    magic, _, length = HEADER.unpack_from(first_page)
    if magic != MAGIC or length > STATE_BYTES_MAX:
        raise MalformedError("The control volume does not hold a control state.")
    return -(-(HEADER.size + int(length)) // page_size)


def unframe(content: bytes) -> bytes:
    """The state from the file's pages. Raises MalformedError."""
    _, crc, length = HEADER.unpack_from(content)
    state = content[HEADER.size : HEADER.size + length]
    if len(state) != length or google_crc32c.value(state) != crc:
        raise MalformedError("The control state is damaged: its CRC does not match.")
    return state


class ControlStore:
    """The open control volume. `save` is called by one task at a time."""

    def __init__(self, volume: Volume, saved: list[bytes]) -> None:
        self._volume = volume
        self._saved = saved

    @classmethod
    async def open(
        cls, volume: VolumeState, nodes: Sequence[NodeAddress], *, timeout_s: float, on_fenced: Callable[[], None]
    ) -> tuple[Self, Fleet | None]:
        """Seals, recovers, reads; no fleet if none was ever saved. Raises QuorumLostError, MalformedError."""
        opened = await Volume.open(volume_spec(volume), nodes, timeout_s=timeout_s, on_fenced=on_fenced)
        try:
            async with asyncio.timeout(timeout_s):
                pages = await _read(opened, volume.page_size)
                fleet = unpack(unframe(b"".join(pages))) if pages else None
        except BaseException:
            await opened.close()
            raise
        return cls(opened, pages), fleet

    @property
    def epoch(self) -> int:
        """The epoch of this control plane."""
        return self._volume.epoch

    async def save(self, fleet: Fleet) -> int:
        """Makes the state durable on a write quorum; its LSN. Raises FencedError, QuorumLostError, MalformedError."""
        state = pack(fleet)
        if len(state) > STATE_BYTES_MAX:
            raise MalformedError(f"The control state has {len(state)} bytes, {STATE_BYTES_MAX} is the limit.")
        page_size = self._volume.spec.page_size
        pages = frame(state, page_size)
        lsn = await self._volume.append(changes(self._saved, pages, page_size))
        self._saved = pages
        return lsn

    @property
    def placements(self) -> tuple[GroupPlacement, ...]:
        """Who holds the control volume in truth."""
        return self._volume.spec.groups

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        """New addresses of storage nodes."""
        await self._volume.update_nodes(nodes)

    async def change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        """See membership.change_members."""
        return await change_members(self._volume, placement, filled)

    async def close(self) -> None:
        """Closes the volume; what was saved is durable already, so streams that do not end in time are left behind."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._volume.close()


def changes(old: Sequence[bytes], new: Sequence[bytes], page_size: int) -> list[Record]:
    """The records that turn the file with pages `old` into the one with pages `new`."""
    records: list[Record] = []
    if not old:
        records.append(create(FILE_ID, FILE_PATH))
    if len(new) > len(old):
        extents_old, extents_new = (-(-len(pages) // EXTENT_PAGES) for pages in (old, new))
        records += [extent(FILE_ID, number, 0) for number in range(extents_old, extents_new)]
        records.append(size(FILE_ID, len(new) * page_size))
    elif len(new) < len(old):
        records.append(truncate(FILE_ID, len(new) * page_size))
    for number, page in enumerate(new):
        if number >= len(old) or old[number] != page:
            records.append(page_full(FILE_ID, number, page))
    return records


async def _read(volume: Volume, page_size: int) -> list[bytes]:
    """The file's pages; none if nothing was ever saved."""
    if volume.tail_lsn == 0:
        return []
    first = await _read_run(volume, 0, 1, page_size)
    count = pages_needed(first[0], page_size)
    return first if count == 1 else first + await _read_run(volume, 1, count - 1, page_size)


async def _read_run(volume: Volume, first_page: int, count: int, page_size: int) -> list[bytes]:
    (run,) = await volume.read_pages([(0, FILE_ID, first_page, count)])
    pages, at = [], 0
    for kind in run.kinds:
        pages.append(run.pages[at : at + page_size] if kind else bytes(page_size))
        at += page_size if kind else 0
    return pages
