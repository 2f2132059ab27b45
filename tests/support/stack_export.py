# ruff: noqa: ASYNC240 - nothing else runs in this loop meanwhile
"""A volume as of an LSN as a plain directory: what a stock engine, or its tools, can be pointed at."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aurora_ray.engine.account import EngineAccount
from aurora_ray.errors import AuroraError
from aurora_ray.log.filetable import Entry, FileKind
from aurora_ray.log.sizes import EXTENT_PAGES
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.read.reader import VolumeReader
from aurora_ray.volume.spec import NodeAddress, VolumeSpec
from tests.support.stack_view import client_of
from tests.support.timing import scaled

LEASE_S = 5.0
CHUNK_PAGES = 1024
OPEN_TIMEOUT_S = 20.0


async def export(
    spec: VolumeSpec, nodes: Sequence[NodeAddress], lsn: int | None, target: Path, account: EngineAccount
) -> int:
    """Writes the volume as of `lsn` (default: the newest) to `target`, which is made anew; the LSN."""
    async with _kept(spec, nodes, lsn or 0):
        reader = await VolumeReader.open(spec, nodes, lsn=lsn, timeout_s=scaled(OPEN_TIMEOUT_S))
        try:
            table = await reader.read_file_table()
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
            for entry in table.entries():
                if entry.paths:
                    path = target / os.fsdecode(entry.paths[0])
                    await _write(reader, entry, path, spec.page_size)
                    for other in entry.paths[1:]:
                        os.link(path, target / os.fsdecode(other))
                    if account.switch:
                        os.chown(path, account.uid, account.gid, follow_symlinks=False)
            return reader.read_lsn
        finally:
            await reader.close()


async def _write(reader: VolumeReader, entry: Entry, path: Path, page_size: int) -> None:
    if entry.kind is FileKind.DIRECTORY:
        path.mkdir(exist_ok=True)
        path.chmod(entry.mode)
        return
    if entry.kind is FileKind.SYMLINK:
        path.symlink_to(os.fsdecode(entry.target))
        return
    with path.open("wb") as file:
        for first in range(0, -(-entry.size // page_size), CHUNK_PAGES):
            last = min(first + CHUNK_PAGES, -(-entry.size // page_size))
            ranges = [
                PageRange(0, entry.file_id, page, min(EXTENT_PAGES, last - page))
                for page in range(first, last, EXTENT_PAGES)
            ]
            page = first
            for run in await reader.read_pages(ranges):
                at = 0
                for kind in run.kinds:
                    if kind:
                        file.seek(page * page_size)
                        file.write(run.pages[at : at + page_size])
                        at += page_size
                    page += 1
        file.truncate(entry.size)
    path.chmod(entry.mode)


@asynccontextmanager
async def _kept(spec: VolumeSpec, nodes: Sequence[NodeAddress], lsn: int) -> AsyncIterator[None]:
    """Holds a read point on every node that answers, so that nothing at or after `lsn` is collected meanwhile."""

    async def hold_all() -> None:
        await asyncio.gather(*(_hold(spec, node, lsn) for node in nodes))

    async def renew() -> None:
        while True:
            await asyncio.sleep(LEASE_S / 10)  # not synchronisation: leases run out
            await hold_all()

    await hold_all()
    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()


async def _hold(spec: VolumeSpec, node: NodeAddress, lsn: int) -> None:
    async with client_of(node) as client:
        with suppress(AuroraError):
            await client.set_read_point(spec.volume_id.bytes, "export", lsn, LEASE_S, timeout_s=5)
