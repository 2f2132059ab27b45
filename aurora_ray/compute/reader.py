"""One incarnation of a reader: a standing look at a volume that somebody else writes, and an engine that follows it.

    open the volume for reading at the VDL, hold history from there -> mount it read-only -> start the engine as a
    standby -> follow the volume's log and feed the engine with it, until something ends

What the engine changes of its mount (what it replays, its own files) is a private overlay that nobody else sees and
that goes with the incarnation. The log is followed from the LSN of the mount on; only what is durable comes, so the
reader shows nothing that is not, and nobody need be the writer for it to go on.

It ends when the log that it needs is gone, or the writer has changed what a standby cannot take in its stride. Opened
anew it starts from the VDL of then, so every end is one that may be followed by another opening at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import uuid4

from aurora_ray import telemetry
from aurora_ray.compute import commands
from aurora_ray.compute.assemble import mount_for, read_file, start_on
from aurora_ray.compute.config import IncarnationPhase, InstanceConfig, InstanceStatus, Opened
from aurora_ray.compute.floors import Floors
from aurora_ray.compute.incarnation import (
    CLOSE_TIMEOUT_S,
    WRITE_BACK_TIMEOUT_S,
    End,
    Opening,
    describe,
    exit_end,
    hung_end,
    mount_end,
    sentence,
)
from aurora_ray.compute.leftovers import write_pid_file
from aurora_ray.compute.overlay import wait_outgrown
from aurora_ray.compute.watch import engine_watch
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import AuroraError, EngineError, UsageError
from aurora_ray.mount.evictor import default_cache_bytes
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.read.reader import AsOf, VolumeReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.writer import Writer
    from aurora_ray.engine.base import Engine, StandbyFeed
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.mount.mount import MountedVolume
    from aurora_ray.volume.read.lease import ReadLease
    from aurora_ray.volume.spec import NodeAddress

T = TypeVar("T")

_log = logging.getLogger(__name__)

PROMOTE_TIMEOUT_S: Final = 5.0
DRAINED_LOOK_S: Final = 0.002
NOTE_EVERY_S: Final = 0.5
WRITE_BACK_AT: Final = (1, 4, 16)  # notes after a checkpoint of the writer, which may be replayed late
WRITE_BACK_EVERY: Final = 120
SILENT_S: Final = 1.5  # a copy that is followed says something every second


class Reader(Opening):
    """See Opening."""

    kind = "reader"
    # Whatever its engine would still write goes with the mount, and the place may be waited for.
    asked_mode = StopMode.IMMEDIATE

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__(config)
        self._volume: VolumeReader | None = None
        self._lease: ReadLease | None = None
        self._follower: Follower | None = None
        self._feed: StandbyFeed | None = None
        self._following: asyncio.Task[AuroraError] | None = None
        self._base_lsn = 0  # of the mount
        self._cache_bytes = 0
        self._floors = Floors()
        self._near: asyncio.Task[None] | None = None
        self._letting_go: asyncio.Task[None] | None = None

    # ---- opening

    async def _open_mount(self) -> None:
        config = self.config
        prepared = await self._prepare()
        with self._stage("volume", IncarnationPhase.SEALING):
            volume = self._volume = await VolumeReader.open(
                config.volume, config.nodes, timeout_s=config.open_timeout_s, az=config.az
            )
            self._lease = await volume.hold(f"reader {config.instance_id} {uuid4().hex}")
            describe({"aurora.lsn": volume.read_lsn, "aurora.nodes": len(config.nodes)})
        if volume.read_lsn == 0:
            raise EngineError(f"volume {config.volume.volume_id} is empty: its writer has not made it yet")
        engine = self._make_engine(prepared)
        with self._stage("mount", IncarnationPhase.MOUNTING):
            base = AsOf(volume)
            self._base_lsn = base.read_lsn
            self._cache_bytes = config.cache_bytes or default_cache_bytes(config.dirs.mount)
            table = await base.read_file_table()
            self._mounted = await mount_for(
                prepared, engine, base, config.dirs.mount, writer=None, cache_bytes=self._cache_bytes, told=self._tell
            )
            feed = self._feed = await engine.make_feed(
                config.dirs.mount, table, base.read_lsn, partial(read_file, volume)
            )
            await feed.open()
        self._follower = Follower.open(config.volume, config.nodes, after_lsn=volume.read_lsn, az=config.az)
        self._following = asyncio.create_task(
            self._follow(volume, self._follower, feed), name=f"follow for {config.instance_id}"
        )

    async def _follow(self, volume: VolumeReader, follower: Follower, feed: StandbyFeed) -> AuroraError:
        """Feeds the engine until the log cannot be followed any more: why."""
        try:
            async for flush in follower:
                volume.advance(flush.end, dict.fromkeys(flush.batches, flush.end))
                await feed.take(flush)
        except AuroraError as error:
            return error
        except Exception as error:  # whatever it is, nobody may go on reading from a reader that does not follow
            _log.exception("%s cannot follow", self.config.instance_id)
            return EngineError(f"the log could not be followed: {error!r}")
        return EngineError("the log ended")

    async def _start_engine(self) -> None:
        _, mounted, engine, feed = self._require_open()
        await self._start_standby(mounted, engine, feed)

    async def _start_standby(self, mounted: MountedVolume, engine: Engine, feed: StandbyFeed) -> None:
        config, dirs = self.config, self.config.dirs
        with self._stage("engine", IncarnationPhase.STARTING):
            mounted.trace_reads()
            await start_on(mounted, engine, timeout_s=config.open_timeout_s, follow=feed)
            if engine.pid is not None:
                write_pid_file(dirs.pid_file, engine.pid)

    def _opened(self) -> Opened:
        volume, _, engine, _ = self._require_open()
        if self.config.goes_on:
            self._near = asyncio.create_task(self._stay_near(), name=f"stay near {self.config.instance_id}")
        return Opened(0, volume.read_lsn, engine.pid or 0, engine.port, dict(self._stages_s), self._troubles())

    def _require_open(self) -> tuple[VolumeReader, MountedVolume, Engine, StandbyFeed]:
        if self._volume is None or self._mounted is None or self._engine is None or self._feed is None:
            raise UsageError(f"reader {self.config.instance_id} is not open")
        return self._volume, self._mounted, self._engine, self._feed

    # ---- serving

    def _ends(self) -> list[End]:
        _, mounted, engine, feed = self._require_open()
        assert self._lease is not None and self._following is not None, "it is open"  # noqa: S101, PT018
        config = self.config

        async def storage() -> tuple[int, bool]:
            return feed.replayed().lsn, False

        def because(error: Any) -> tuple[str, int]:
            return sentence(error), 0

        return [
            mount_end(mounted),
            End("feed", feed.wait_failed(), because),
            End("log", _result(self._following), because),
            End("lease", self._lease.gone.wait(), lambda _: (f"history from LSN {self._base_lsn} on is gone", 0)),
            End("overlay", wait_outgrown(self._costs), lambda why: (why, 0)),
            exit_end(engine),
            hung_end(engine_watch(engine, storage, config.health, config.instance_id)),
        ]

    def _reads_table(self) -> Callable[[], Awaitable[FileTable]] | None:
        """See Opening."""
        return self._volume.read_file_table if self._volume is not None else None

    def _costs(self) -> tuple[int, int, int]:
        """Bytes in the mount, those that the cache would keep to, and of log since the mount was made."""
        _, mounted, _, _ = self._require_open()
        held = self._follower.lsn - self._base_lsn if self._follower is not None else 0
        return int(mounted.stats().get("cached_bytes", 0)), self._cache_bytes, held

    def status(self) -> InstanceStatus:
        """A look, without waiting."""
        volume, engine, follower, feed = self._volume, self._engine, self._follower, self._feed
        if volume is None:
            return InstanceStatus(self._phase, reason=self._reason, role=self.config.role)
        stats = self._stats()
        return InstanceStatus(
            phase=self._phase,
            vdl=follower.durable.lsn if follower is not None else volume.read_lsn,
            pid=(engine.pid or 0) if engine is not None else 0,
            port=engine.port if engine is not None else 0,
            groups=tuple(placement.group for placement in volume.spec.groups),
            reason=self._reason,
            stats=stats,
            placements=volume.spec.groups,
            troubles=self._troubles(),
            socket_dir=str(engine.socket_dir) if engine is not None else "",
            hand_over=str(engine.hand_over or "") if engine is not None else "",
            declared_memory_bytes=self.config.memory_bytes,
            size=self._size,
            role=self.config.role,
            replayed_lsn=feed.replayed().lsn if feed is not None else 0,
            unheard_s=time.monotonic() - follower.heard_s if follower is not None else 0.0,
            lag_ms=_lag_ms(follower, feed, time.monotonic()) if follower is not None and feed is not None else None,
            horizon=feed.horizon if feed is not None else None,
        )

    async def do(self, command: Command[T]) -> T:
        """Carries out a command. Raises UsageError for one that a reader does not take."""
        answer: Any = None
        match command:
            case commands.Configure(parameters):
                await self.configure(parameters)
            case commands.UpdateNodes(nodes):
                await self.update_nodes(nodes)
            case commands.Scale(order):
                answer = await self.scale(order)
            case commands.AddGroup():
                await self._require_open()[0].refresh()  # the copies say which groups there are
            case commands.ReplicaStatus(rows, regions, writer_at):
                self._require_open()[2].tell_replicas(rows, regions, writer_at)
            case commands.WriteBack(timeout_s) if self.config.goes_on:
                answer = await self._require_open()[2].write_back(timeout_s=timeout_s)
            case commands.HoldHorizon() | commands.WriteBack():
                pass  # it has been a writer a moment ago
            case commands.FirstWrite():
                pass  # that is the writer's to say
            case _:
                raise UsageError(f"a reader does not take {type(command).__name__}")
        return cast("T", answer)

    async def configure(self, parameters: Mapping[str, str]) -> None:
        """Other parameters of the cluster, see Engine.configure."""
        _, _, engine, _ = self._require_open()
        self._parameters = dict(parameters)
        await engine.configure(parameters, self._size)

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        """New addresses of storage nodes."""
        volume, _, _, _ = self._require_open()
        await volume.update_nodes(nodes)
        if self._follower is not None:
            await self._follower.update_nodes(nodes)

    # ---- going on as the writer

    async def _stay_near(self) -> None:
        """Has little to do should it go on as the writer: a crash after that is recovered from the engine's last
        restartpoint, from where on the volume must have the log, and what was written since goes to the volume."""
        _, mounted, engine, feed = self._require_open()
        seen, turns = -1, 0
        while True:
            self._floors.note(mounted.log_position, feed.given)
            turns += 1
            if feed.checkpoints != seen:
                seen, turns = feed.checkpoints, 0
            if turns in WRITE_BACK_AT or (turns and turns % WRITE_BACK_EVERY == 0):
                with contextlib.suppress(EngineError):  # its sessions take all that there are, perhaps
                    await engine.write_back(timeout_s=WRITE_BACK_TIMEOUT_S)
            await asyncio.sleep(NOTE_EVERY_S)

    async def _leave_off(self) -> None:
        if self._near is not None:
            self._near.cancel()
            await asyncio.gather(self._near, return_exceptions=True)

    async def promote(self, config: InstanceConfig) -> tuple[Writer, Opened]:
        """Its engine goes on as the writer's, with its sessions: see "Promotion in place" in ARCHITECTURE.md.
        `config` is that of the same place as a writer. `succeeded` is to be called when the writer is in this one's
        place.

        The volume is sealed first, so whatever comes then, there is no other writer. Raises AuroraError when it cannot
        be; then this incarnation has ended, and its place is to be opened anew.
        """
        from aurora_ray.compute.writer import Follows, Writer  # its imports take a while

        _, mounted, engine, feed = self._require_open()
        if self._phase is not IncarnationPhase.AVAILABLE or config.holds_commits or config.restore is not None:
            raise UsageError(f"{self.config.instance_id} cannot go on as the writer")
        await self._stop_watching()
        await self._leave_off()
        writer = Writer(config)
        try:
            self._require_alive(mounted, engine)
            with telemetry.span("reader.promote"):
                follows = Follows(partial(self._drain, feed), self._floors.at)
                await writer.take_over(follows, mounted, engine, PROMOTE_TIMEOUT_S)
        except BaseException as error:
            # Whoever cuts this short, too, finds it ended, and not half of it.
            stuck = writer.stuck()
            giving_up = asyncio.create_task(self._give_up(writer, error), name=f"end {self.config.instance_id}")
            await asyncio.shield(giving_up)
            if isinstance(error, TimeoutError):
                raise EngineError(f"{self.config.instance_id} did not go on as the writer in time: {stuck}") from error
            raise
        opened = await writer._succeed(self)
        self._letting_go = asyncio.create_task(self._close_below(), name=f"let go of {self.config.instance_id}")
        return writer, opened

    async def _give_up(self, writer: Writer, error: BaseException) -> None:
        why = writer.stuck() if isinstance(error, TimeoutError) else sentence(error)
        await writer.abandon()
        why = f"it could not go on as the writer: {why}"
        await self._tear_down(why, asked=False, later=True)

    def _require_alive(self, mounted: MountedVolume, engine: Engine) -> None:
        """What watched it may have begun to end it."""
        if self._mounted is not mounted or self._engine is not engine or engine.pid is None:
            raise EngineError(f"{self.config.instance_id} is ending")

    async def _drain(self, feed: StandbyFeed, lsn: int) -> None:
        """Returns when the engine has replayed all that the volume has up to `lsn`, where it ends, and follows no
        more."""
        assert self._following is not None and self._follower is not None, "it is open"  # noqa: S101, PT018
        while self._follower.lsn < lsn or feed.replayed().lsn < lsn:
            if self._following.done():
                raise self._following.result()
            await asyncio.sleep(DRAINED_LOOK_S)
        self._following.cancel()

    # ---- ending

    async def _before_engine_goes(self) -> None:
        await self._leave_off()

    async def _close_below(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        steps = (
            ("end the feed", self._feed.close if self._feed is not None else None),
            ("end the following", self._follower.close if self._follower is not None else None),
            ("release the lease", self._lease.release if self._lease is not None else None),
            ("close the volume", self._volume.close if self._volume is not None else None),
        )
        for what, step in steps:
            if step is not None:
                await self._try(what, step, CLOSE_TIMEOUT_S)


async def _result(task: asyncio.Task[AuroraError]) -> AuroraError:
    return await asyncio.shield(task)


def _lag_ms(follower: Follower, feed: StandbyFeed, now_s: float) -> float:
    """For how long the reader does not show what is durable: since the oldest flush that it was given and has not
    replayed came, or since it heard that more is durable than came; or since it last heard anything at all."""
    since_s = [since for since in (feed.replayed().waits_since_s, follower.waits_since_s) if since is not None]
    if now_s - follower.heard_s > SILENT_S:
        since_s.append(follower.heard_s)
    return round(max((now_s - since) * 1e3 for since in since_s), 1) if since_s else 0.0
