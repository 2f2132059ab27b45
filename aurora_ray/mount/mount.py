"""The mount: a volume as a directory that an engine can use.

Mounting makes the names, at their sizes, and nothing else: files are sparse, and a page that is touched first is
fetched then. So it takes the same time for 10 MB and for 10 TB of data; what it depends on is the number of files.

The directory is a cache. It is made new at every start and thrown away at every end, whatever the reason: what is not
in the volume did not happen, and local content is never taken for the truth after an unclean end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurora_ray import telemetry
from aurora_ray.errors import ConfigurationError, UsageError
from aurora_ray.interposer import native
from aurora_ray.interposer.region import Region
from aurora_ray.log.sizes import EXTENT_PAGES, GROUPS_MAX, NO_GROUP
from aurora_ray.mount import discarding
from aurora_ray.mount.driver import Driver
from aurora_ray.mount.exchange import ExchangeRefusedError, any_of
from aurora_ray.mount.localtree import make_tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.mount.exchange import Rules
    from aurora_ray.mount.localtree import MountedFile
    from aurora_ray.volume.read.source import PageSource
    from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
    from aurora_ray.volume.write.volume import Volume

RING_BYTES = 64 << 20
OVERLAY_EXTENTS = 1 << 31  # what stays on the mount takes no room in the volume, however full that is
_FILES_MIN = 1 << 18  # places in the region's table; one that is never used takes no memory


class MountedVolume:
    """A volume under a directory, with its driver at work in this event loop."""

    def __init__(
        self,
        mount_dir: Path,
        region: Region,
        driver: Driver,
        volatile_patterns: Sequence[tuple[str, str]],
        first: Sequence[Sequence[str]] = (),
    ) -> None:
        """`first`: patterns of files that are read first, and of those that are read soon."""
        self.mount_dir = mount_dir
        self._first = [any_of(patterns) for patterns in first]
        self._volatile_patterns = volatile_patterns
        self._region = region
        self._driver = driver
        self._sweep: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        source: PageSource,
        mount_dir: Path,
        *,
        writer: Volume | None,
        owner_uid: int | None = None,
        owner_gid: int | None = None,
        cache_bytes: int,
        ring_bytes: int = RING_BYTES,
        volatile_patterns: Iterable[tuple[str, str]] = (),
        eager: Sequence[str] = (),
        soon: Sequence[str] = (),
        grow: Callable[[], Awaitable[GroupPlacement]] | None = None,
        told: Callable[[str], None] = lambda _: None,
        groups_max: int = GROUPS_MAX,
    ) -> MountedVolume:
        """Mounts the newest state that `source` can read; what is changed here goes to `writer`.

        Without a writer it stays here, as a private overlay, for as long as the mount is open. With one, `source` is
        the writer or reads what it has made durable, and nothing was appended since it was opened.
        `mount_dir` is made anew. `eager` and `soon` are patterns (fnmatch, on paths relative to the mount) of files
        whose pages are fetched before this returns, and in the background afterwards. `grow`, when given, is asked for
        another protection group when the last one is full; without it the engine waits until `add_group` is called.
        With `groups_max` of them, the engine is told at once that there is no space left.
        What changes at `volatile_patterns` is not logged; but a file that the volume has by a path among them is the
        volume's, also for whoever removes it.
        `told` hears how far it is, in words, from any thread.
        Raises ConfigurationError if the directory cannot be made, QuorumLostError if the file table cannot be read.
        """
        mount_dir = await asyncio.to_thread(lambda: Path(os.path.realpath(mount_dir)))
        told("reading the table of files")
        with telemetry.span("mount.file_table"):
            base_lsn = source.read_lsn if writer is None else writer.tail_lsn
            table = await source.read_file_table(base_lsn)
        with telemetry.span("mount.tree", {"aurora.files": len(table)}):
            files = await _tree(table, mount_dir, str(source.spec.volume_id), (owner_uid, owner_gid), told)
        patterns = [each for each in volatile_patterns if writer is None or not _has(table, each)]
        region = Region(
            page_bytes=source.spec.page_size,
            base_lsn=base_lsn,
            next_file_id=table.next_file_id,
            ring_bytes=ring_bytes,
            bell_bytes=min(256 << 10, ring_bytes // 4),
            files_max=max(_FILES_MIN, 4 * len(table)),
            volatile_patterns=patterns,
        )
        driver: Driver | None = None
        try:
            driver = Driver(
                source, region, mount_dir, writer=writer, cache_bytes=cache_bytes, grow=grow, groups_max=groups_max
            )
            slots = driver.register(files, table.next_file_id)
            for group, free in _free_extents(source.spec, table).items():
                region.add_group(group, free if writer is not None else OVERLAY_EXTENTS)
            driver.start()
            await asyncio.to_thread(_copy_library, mount_dir)
            mounted = cls(mount_dir, region, driver, patterns, (eager, soon))
            with telemetry.span("mount.eager"):
                await driver.prefetch(_matching_slots(files, slots, eager))
            driver.prefetch_soon(_matching_slots(files, slots, soon))
        except BaseException:
            if driver is not None:
                await driver.stop()
            region.close()
            await asyncio.to_thread(discarding.remove, mount_dir)
            raise
        mounted._sweep = asyncio.create_task(discarding.sweep(mount_dir), name="sweep old mounts")
        return mounted

    def engine_environment(self) -> dict[str, str]:
        """The variables with which the engine's processes find the volume."""
        return self._region.environment(self.mount_dir, _library_copy(self.mount_dir))

    def bringer(self) -> Callable[[Iterable[tuple[bytes, int, int]]], Coroutine[Any, Any, None]]:
        """What brings pages of the files that were mounted, each time for many stretches (path relative to the mount,
        first page, count) of which no two have a page in common, and leaves out what there is not. It knows names as
        they were, for whoever starts an engine here. It raises what reading the volume raises."""
        slots = self._driver.slots_by_path()

        async def bring(pages: Iterable[tuple[bytes, int, int]]) -> None:
            known = ((slots.get(path), first, count) for path, first, count in pages)
            parts = [(slot, first, first + count) for slot, first, count in known if slot is not None]
            if not self._closed:
                await self._driver.fetch_parts(parts)

        return bring

    @property
    def cache_pages(self) -> int:
        """How many pages the local cache may have at the moment."""
        return self._driver.cache_pages

    def check_attached(self) -> None:
        """Raises ConfigurationError if no engine process has loaded the interposer: nothing it writes would be kept.

        To be called when the engine has started. The dynamic linker only warns when it cannot load a library.
        """
        if not self._region.peek().attached:
            raise ConfigurationError(
                f"the engine runs without {_library_copy(self.mount_dir)}: is it statically linked or set-user-id?"
            )

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The descriptors that the engine must inherit."""
        return self._region.pass_fds

    def trace_reads(self) -> None:
        """Pages that the engine misses belong to the trace of the current span for as long as it is not ended."""
        self._driver.listen()

    async def wait_failed(self) -> Exception:
        """Returns when the mount cannot go on, with the reason."""
        return await asyncio.shield(self._driver.failed)

    async def flush(self, *, timeout_s: float) -> int:
        """Makes all that the engine has written so far durable, synced or not. Returns the LSN."""
        return await self._driver.flush(timeout_s=timeout_s)

    def add_group(self, placement: GroupPlacement) -> None:
        """Lets new extents be placed in a protection group that the volume has been given."""
        if self._closed:
            return
        self._driver.add_group(placement.group)

    @property
    def log_position(self) -> int:
        """Where the mount's own log is: what was changed up to now lies at or below."""
        return 0 if self._closed else self._region.end_lsn

    async def exchange(self, writer: Volume, table: FileTable, rules: Rules, *, groups_max: int = GROUPS_MAX) -> int:
        """From now on this mount, which had no writer, is one of `writer`, which was just opened and has been given
        nothing; `table` is its newest table of files. Returns how many pages the volume lacks; `wait_settled` returns
        when it lacks none.

        Raises ExchangeRefusedError: then all is as it was. After anything else the mount has failed.
        """
        if self._closed or self._driver.gate is not None:
            raise UsageError("only a private mount can be given a volume to write to")
        if any(_has(table, pattern) for pattern in self._volatile_patterns):
            raise ExchangeRefusedError("the volume has files where this mount keeps its own")
        exchange = await self._driver.exchange(writer, table, rules, _free_extents(writer.spec, table))
        self._driver.groups_max = groups_max
        paths = exchange.paths
        reads = [(paths[path], first, first + count) for path, first, count in rules.reads if path in paths]
        eager, soon = ([slot for path, slot in paths.items() if match(path)] for match in self._first)
        self._driver.bring_first(reads, eager, soon)
        return exchange.owed_pages

    def begin_settling(self) -> None:
        """After an exchange: the volume gets what it lacks."""
        self._driver.settle()

    def hurry(self) -> None:
        """Somebody waits for a checkpoint, which ends only when the volume lacks nothing."""
        if not self._closed:
            self._driver.hurry()

    async def wait_settled(self) -> None:
        """The same at once, and returns when it lacks nothing."""
        await self._driver.wait_settled()

    def acknowledge_until(self, until_s: float | None, *, lowers: bool = False) -> float:
        """The engine hears of what is durable until then, by `gate.running_clock_s`, and of the rest when this is
        called again; None: always. `lowers`: not after the moment that was told before, either. What that clock says
        now. Raises UsageError for a mount without a writer."""
        if self._closed or (gate := self._driver.gate) is None:
            raise UsageError("nothing is written from this mount")
        return gate.lower(until_s) if lowers and until_s is not None else gate.limit(until_s)

    @property
    def holds_commits(self) -> bool:
        """Whether that moment has gone by."""
        return not self._closed and self._driver.gate is not None and self._driver.gate.holds

    def set_cache_bytes(self, cache_bytes: int) -> None:
        """Another budget for the local cache, from now on."""
        if not self._closed:
            self._driver.set_cache_bytes(cache_bytes)

    def stats(self) -> Mapping[str, int | float]:
        """Counters since mounting, and how full the volume and the local cache are; empty once it is being closed."""
        return {} if self._closed else self._driver.stats()  # the region's memory goes before the directory does

    async def close(self, discard: bool = True, *, later: bool = False) -> None:
        """Ends the driver and every engine process that is still at work, and removes the directory.

        `later`: somebody waits for the next mount, so that one shall see to the removal.
        """
        if self._closed:
            return
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)
        await self._driver.stop()
        self._region.close()
        if discard:
            old = await asyncio.to_thread(discarding.set_aside, self.mount_dir)
            if old is not None and not later:
                await asyncio.to_thread(discarding.remove, old)
            _library_copy(self.mount_dir).unlink(missing_ok=True)


async def _tree(
    table: FileTable,
    mount_dir: Path,
    volume: str,
    owner: tuple[int | None, int | None],
    told: Callable[[str], None],
) -> list[MountedFile]:
    of = f"of {len(table):,} files are made"
    tell = lambda count: told(f"{count:,} {of}")  # noqa: E731
    ready = discarding.waiting(mount_dir, volume)
    return await asyncio.to_thread(make_tree, table, mount_dir, *owner, out_of=ready, made=tell)


def _library_copy(mount_dir: Path) -> Path:
    return mount_dir.with_name(mount_dir.name + ".interposer.so")


def _copy_library(mount_dir: Path) -> None:
    """Beside the mount, where the engine's account can read it, and where no upgrade replaces it under the engine."""
    copy = _library_copy(mount_dir)
    copy.unlink(missing_ok=True)
    shutil.copyfile(native.library_path(), copy)
    copy.chmod(0o755)


def _free_extents(spec: VolumeSpec, table: FileTable) -> dict[int, int]:
    extent_bytes = EXTENT_PAGES * spec.page_size
    taken: Counter[int] = Counter()
    for extents in table.extents():
        taken.update(extents)
    del taken[NO_GROUP]
    free = {placement.group: spec.group_bytes // extent_bytes for placement in spec.groups}
    return {group: max(0, free.get(group, 0) - taken[group]) for group in {*free, *taken}}


def _matching_slots(files: Sequence[MountedFile], slots: Sequence[int], patterns: Sequence[str]) -> list[int]:
    wanted = any_of(patterns)
    return [slot for slot, file in zip(slots, files, strict=True) if file.entry.size and wanted(file.entry.paths[0])]


def _has(table: FileTable, pattern: tuple[str, str]) -> bool:
    kind, path = pattern
    return kind == "exact" and table.lookup(path.encode()) is not None
