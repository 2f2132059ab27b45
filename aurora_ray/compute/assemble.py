"""Volume, mount and engine put together: the one place for it, whoever runs them (instances, benchmarks, tests)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aurora_ray import telemetry
from aurora_ray.engine.image import import_records
from aurora_ray.errors import AuroraError
from aurora_ray.log.sizes import EXTENT_PAGES, GROUPS_MAX, NO_GROUP
from aurora_ray.mount.evictor import default_cache_bytes
from aurora_ray.mount.mount import MountedVolume
from aurora_ray.volume.read.pages import PageRange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aurora_ray.compute.engines import PreparedEngine
    from aurora_ray.engine.base import Engine, FilePart, StandbyFeed
    from aurora_ray.volume.read.pages import PageRun
    from aurora_ray.volume.read.source import PageSource
    from aurora_ray.volume.write.volume import Volume

CACHE_SHARE: Final = 2  # of the cache, what is brought before it is asked for may take one part in so many

_log = logging.getLogger(__name__)


async def import_image(prepared: PreparedEngine, volume: Volume) -> None:
    """Fills an empty volume with a new cluster's data directory; durable when it returns."""
    await import_records(prepared.image.new_cluster(), volume)


async def is_complete(prepared: PreparedEngine, volume: Volume) -> bool:
    """Whether a volume holds a complete data directory: the last file that `import_image` writes is there.

    Raises what reading a volume raises.
    """
    entry = (await volume.read_file_table()).lookup(prepared.adapter.last_file)
    if entry is None or not entry.extents or entry.extents[0] == NO_GROUP:
        return False
    (run,) = await volume.read_pages([PageRange(entry.extents[0], entry.file_id, 0, 1)])
    return any(run.pages)


async def mount_for(
    prepared: PreparedEngine,
    engine: Engine,
    source: PageSource,
    mount_dir: Path,
    *,
    writer: Volume | None,
    cache_bytes: int = 0,
    told: Callable[[str], None] = lambda _: None,
    groups_max: int = GROUPS_MAX,
) -> MountedVolume:
    """A mount of what `source` reads, as the engine's data directory; see MountedVolume.open, also for `told`.

    An engine without a writer follows. `cache_bytes` 0: by what is free on its disk.
    """
    account = prepared.account
    patterns = engine.volatile_patterns(follows=writer is None)
    return await MountedVolume.open(
        source,
        mount_dir,
        writer=writer,
        owner_uid=account.uid if account.switch else None,
        owner_gid=account.gid if account.switch else None,
        cache_bytes=cache_bytes or default_cache_bytes(mount_dir),
        volatile_patterns=[(pattern.kind.value, pattern.pattern) for pattern in patterns],
        eager=prepared.adapter.eager,
        soon=prepared.adapter.soon,
        told=told,
        groups_max=groups_max,
    )


async def read_file(source: PageSource, part: FilePart, lsn: int) -> list[bytes | None]:
    """Pages of a file as of `lsn`, fewer at the end of its extents; None: never written. Raises what reading does."""
    file_id, extents, first_page, page_count = part
    end = min(first_page + page_count, len(extents) * EXTENT_PAGES)
    ranges, answers = [], []
    for number in range(first_page // EXTENT_PAGES, -(-end // EXTENT_PAGES)):
        at, until = max(first_page, number * EXTENT_PAGES), min(end, (number + 1) * EXTENT_PAGES)
        placed = extents[number] != NO_GROUP
        answers.append((until - at, placed))
        if placed:
            ranges.append(PageRange(extents[number], file_id, at, until - at))
    runs = iter(await source.read_pages(ranges, lsn) if ranges else ())
    pages: list[bytes | None] = []
    for count, placed in answers:
        pages += _pages_of(next(runs), source.spec.page_size) if placed else [None] * count
    return pages


def _pages_of(run: PageRun, page_bytes: int) -> list[bytes | None]:
    pages, at = [], 0
    for kind in run.kinds:
        pages.append(run.pages[at : at + page_bytes] if kind else None)
        at += page_bytes if kind else 0
    return pages


async def start_on(
    mounted: MountedVolume, engine: Engine, *, timeout_s: float, follow: StandbyFeed | None = None
) -> None:
    """Starts the engine on its mount, and makes sure that it speaks to it. `timeout_s`: how long nothing may move."""
    foreseeing = asyncio.create_task(_foresee(mounted, engine), name="bring what a start will read")
    try:
        await engine.start(
            mounted.mount_dir,
            env=mounted.engine_environment(),
            pass_fds=mounted.pass_fds,
            timeout_s=timeout_s,
            moved=lambda: mounted.stats().get("pages_fetched"),
            follow=follow,
        )
    finally:
        foreseeing.cancel()
        await asyncio.gather(foreseeing, return_exceptions=True)
    mounted.check_attached()


async def _foresee(mounted: MountedVolume, engine: Engine) -> None:
    try:
        with telemetry.span("engine.foresee"):
            await engine.foresee(mounted.mount_dir, mounted.bringer(), mounted.cache_pages // CACHE_SHARE)
    except AuroraError as error:  # the start reads what it needs all the same
        _log.info("what a start will read was not brought: %s", error)
    except Exception:
        _log.exception("what a start will read was not brought")
