"""A writer whose volume is made out of a backup first; meanwhile its engine reads from the backup.

    the volume is whole -> a writer like any other
    it is not           -> an engine as a standby on a mount of the backup: it reads, and nobody writes
                           beside it, the volume is filled; when it is whole, all of this ends, and the next opening
                           finds it so

So the first query waits for the log between an image and the moment, and for the pages that it reads, not for all data;
and no statement is ever acknowledged that the volume does not have. Whether a volume is whole, its own end says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aurora_ray.backup.fill import fill_volume, is_whole
from aurora_ray.backup.source import BackupSource
from aurora_ray.compute import commands
from aurora_ray.compute.assemble import mount_for, read_file
from aurora_ray.compute.backing import store_at
from aurora_ray.compute.config import IncarnationPhase, InstanceConfig, InstanceStatus, Opened, Outcome
from aurora_ray.compute.incarnation import End, describe, exit_end, hung_end, mount_end, sentence
from aurora_ray.compute.reader import Reader
from aurora_ray.compute.role import Role
from aurora_ray.compute.watch import engine_watch
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import AuroraError, UsageError
from aurora_ray.mount.evictor import default_cache_bytes
from aurora_ray.replication.seeding import SeedProgress
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import RestoreOrder

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Look(Reader):
    """An engine on a mount of a backup, as of its LSN; it follows nobody."""

    kind = "look"

    def __init__(self, config: InstanceConfig, source: BackupSource) -> None:
        super().__init__(replace(config, role=Role.STATIC, restore=None))
        self._source = source

    async def _open_mount(self) -> None:
        config, source = self.config, self._source
        prepared = await self._prepare()
        engine = self._make_engine(prepared)
        with self._stage("mount", IncarnationPhase.MOUNTING):
            describe({"aurora.lsn": source.read_lsn})
            self._cache_bytes = config.cache_bytes or default_cache_bytes(config.dirs.mount)
            table = await source.read_file_table()
            self._mounted = await mount_for(
                prepared, engine, source, config.dirs.mount, writer=None, cache_bytes=self._cache_bytes, told=self._tell
            )
            feed = self._feed = await engine.make_feed(
                config.dirs.mount, table, source.read_lsn, partial(read_file, source)
            )
            await feed.open()

    def _opened(self) -> Opened:
        pid, port = (self._engine.pid or 0, self._engine.port) if self._engine is not None else (0, 0)
        return Opened(0, self._source.read_lsn, pid, port, dict(self._stages_s), self._troubles())

    async def _start_engine(self) -> None:
        assert self._mounted is not None and self._engine is not None and self._feed is not None  # noqa: S101, PT018
        await self._start_standby(self._mounted, self._engine, self._feed)

    def _ends(self) -> list[End]:
        assert self._mounted is not None and self._engine is not None and self._feed is not None  # noqa: S101, PT018
        config = self.config

        async def storage() -> tuple[int, bool]:
            return self._source.fetched_bytes, False

        return [
            mount_end(self._mounted),
            End("feed", self._feed.wait_failed(), lambda error: (sentence(error), 0)),
            exit_end(self._engine),
            hung_end(engine_watch(self._engine, storage, config.health, config.instance_id)),
        ]

    def status(self) -> InstanceStatus:
        """A look, without waiting."""
        engine = self._engine
        return InstanceStatus(
            phase=self._phase,
            vdl=self._source.read_lsn,
            pid=(engine.pid or 0) if engine is not None else 0,
            port=engine.port if engine is not None else 0,
            reason=self._reason,
            stats=dict(self._mounted.stats()) if self._mounted is not None else {},
            troubles=self._troubles(),
            socket_dir=str(engine.socket_dir) if engine is not None else "",
            hand_over=str(engine.hand_over or "") if engine is not None else "",
            declared_memory_bytes=self.config.memory_bytes,
            size=self._size,
            role=Role.STATIC,
        )


class Restored:
    """See the module, and Incarnation."""

    def __init__(self, config: InstanceConfig) -> None:
        self.config = config
        self._writer: Writer | None = None
        self._look: Look | None = None
        self._volume: Volume | None = None
        self._source: BackupSource | None = None
        self._progress = SeedProgress()
        self._phase = IncarnationPhase.SEALING
        self._tasks: list[asyncio.Task[None]] = []
        self._fenced = asyncio.Event()
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def start(self) -> Opened:
        """Opens a writer if the volume is whole, else a look at the backup; without one, fills the volume first."""
        config, order = self.config, self._order
        try:
            volume = self._volume = await Volume.open(
                config.volume, config.nodes, timeout_s=config.open_timeout_s, on_fenced=self._fenced.set, az=config.az
            )
            if not is_whole(volume, order.lsn):
                self._phase = IncarnationPhase.INITIALISING
                store = await asyncio.to_thread(store_at, order.url, order.place, order.key_file)
                source = self._source = await BackupSource.open(store, order.lsn)
                # Whoever looks comes first: filling takes all the processor and bandwidth that it can get.
                opened = await self._try_look(source)
                filling = asyncio.create_task(
                    fill_volume(source, volume, config.nodes, self._progress), name=f"restore {config.cluster}"
                )
                self._tasks.append(filling)
                if opened is not None:
                    self._tasks.append(asyncio.create_task(self._serve(filling), name=f"serve {config.cluster}"))
                    return opened
                await filling
            await self._close()
            self._writer = Writer(replace(config, restore=None, initialise=False))
            return await self._writer.start()
        except BaseException as error:
            await self._close()
            self._end(Outcome(asked=False, reason=f"it could not be opened: {sentence(error)}"))
            raise

    @property
    def _order(self) -> RestoreOrder:
        if self.config.restore is None:
            raise UsageError(f"{self.config.instance_id} is not told what to restore")
        return self.config.restore

    async def _try_look(self, source: BackupSource) -> Opened | None:
        """None where the engine cannot read from the backup: the restore goes on without it."""
        look = Look(self.config, source)
        try:
            opened = await look.start()
        except AuroraError as error:
            _log.warning("%s cannot be looked at while it is restored: %s", self.config.cluster, error)
            return None
        self._look, self._phase = look, IncarnationPhase.AVAILABLE
        return opened

    async def _serve(self, filling: asyncio.Task[None]) -> None:
        """Until the volume is whole, or the look ends."""
        assert self._look is not None  # noqa: S101 - it is open
        looking = asyncio.create_task(self._look.wait_ended(), name="the look ends")
        ends: list[asyncio.Task[Any]] = [looking, asyncio.create_task(self._fenced.wait(), name="it is fenced")]
        noticed_ns = 0
        try:
            await asyncio.wait([filling, *ends], return_when=asyncio.FIRST_COMPLETED)
            noticed_ns = time.time_ns()
            if self._fenced.is_set():
                reason = "a higher epoch exists: another writer has the volume"
            elif filling.done():
                error = None if filling.cancelled() else filling.exception()
                reason = "all its data is back: it opens for writing" if error is None else sentence(error)
            else:
                reason = looking.result().reason
        finally:
            for each in ends:
                each.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        self._phase = IncarnationPhase.STOPPING
        await self._close(but=asyncio.current_task())
        self._end(Outcome(asked=False, reason=reason, retryable=not self._fenced.is_set(), noticed_ns=noticed_ns))

    def _end(self, outcome: Outcome) -> None:
        self._phase = IncarnationPhase.ENDED
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    async def _close(self, but: asyncio.Task[None] | None = None) -> None:
        """Ends what there is, whatever happens on the way."""
        tasks, self._tasks = [task for task in self._tasks if task is not but], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        look, source, volume = self._look, self._source, self._volume
        self._look = self._source = self._volume = None
        if look is not None:
            with contextlib.suppress(AuroraError):
                await look.stop(StopMode.KILL)
        for part in (source, volume):
            if part is not None:
                with contextlib.suppress(AuroraError):
                    await part.close()

    def status(self) -> InstanceStatus:
        """A look, without waiting; while it is restored, its role is STATIC and its reason says how far that is."""
        if self._writer is not None:
            return self._writer.status()
        done, total = self._progress.extents_done, self._progress.extents_total
        reason = f"{done} of {total} extents are back" if total else "the backup is being opened"
        if self._outcome.done():
            reason = self._outcome.result().reason
        if self._look is not None:
            stats = {**self._look.status().stats, "restored_extents": done, "restored_extents_total": total}
            return replace(self._look.status(), phase=self._phase, reason=reason, stats=stats)
        return InstanceStatus(self._phase, reason=reason, role=Role.STATIC)

    async def do(self, command: Command[T]) -> T:
        """Carries out a command."""
        if self._writer is not None:
            return await self._writer.do(command)
        match command:
            case commands.UpdateNodes(nodes):
                if self._volume is not None:
                    await self._volume.update_nodes(nodes)
            case commands.ChangeMembers():
                raise UsageError("a volume that is being restored keeps its members until it is whole")
            case _:
                pass
        return None  # type: ignore[return-value]

    async def stop(self, mode: StopMode, *, reopens: bool = False) -> Outcome:
        """Ends it; a restore goes on with the next opening."""
        if self._writer is not None:
            return await self._writer.stop(mode, reopens=reopens)
        self._phase = IncarnationPhase.STOPPING
        await self._close()
        self._end(Outcome(asked=True, reason="it was asked to stop"))
        return await self.wait_ended()

    async def wait_ended(self) -> Outcome:
        """Returns when it has ended."""
        if self._writer is not None:
            return await self._writer.wait_ended()
        return await asyncio.shield(self._outcome)
