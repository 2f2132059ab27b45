"""One incarnation of a writer: volume, mount and engine, opened together and thrown away together.

    seal the volume and find its end -> (a new volume: put the engine's prepared data directory into it)
    -> mount it -> start the engine -> serve until something ends

There is no repair. Whatever ends first (the engine, the mount, the epoch), everything is torn down: the engine is
killed, the mount discarded, the volume closed, and the outcome says what it was. What was not durable did not happen;
the next incarnation starts from the volume alone. The single orderly way out is `stop`: the engine shuts down in order,
the volume has all of it, and the mount goes.

Tearing down never hides the reason: the first thing that ended is the outcome, later errors are logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from aurora_ray.compute import commands
from aurora_ray.compute.assemble import import_image, is_complete, mount_for, start_on
from aurora_ray.compute.config import HalfMadeVolumeError, IncarnationPhase, InstanceConfig, InstanceStatus, Opened
from aurora_ray.compute.first_write import FirstWrite
from aurora_ray.compute.incarnation import (
    CLOSE_TIMEOUT_S,
    WRITE_BACK_TIMEOUT_S,
    End,
    Opening,
    both,
    describe,
    exit_end,
    hung_end,
    mount_end,
)
from aurora_ray.compute.leftovers import write_pid_file
from aurora_ray.compute.watch import writer_watch
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import AuroraError, EngineError, UsageError
from aurora_ray.mount.exchange import Guard, Rules
from aurora_ray.mount.localtree import leave_in_waiting
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import Outcome
    from aurora_ray.compute.engines import PreparedEngine
    from aurora_ray.engine.base import Engine
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.mount.mount import MountedVolume
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress

T = TypeVar("T")

_log = logging.getLogger(__name__)

WRITE_BACKS_MAX: Final = 3
WRITE_BACK_SHORT_S: Final = 0.3
WRITE_BACK_AFTER_S: Final = 3.0


class Follows(NamedTuple):
    """`drain`: returns when the engine has replayed all up to an LSN. `floor`: what the mount's own log had when the
    engine had been given no more than up to a position, see Rules."""

    drain: Callable[[int], Awaitable[None]]
    floor: Callable[[int], int]


class Writer(Opening):
    """See Opening."""

    kind = "writer"

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__(config)
        self._volume: Volume | None = None
        self._noting: asyncio.Task[None] | None = None
        self._fenced = asyncio.Event()
        self._first_write: FirstWrite | None = None
        self._left: FileTable | None = None  # what the volume was at an orderly end

    # ---- opening

    def _opened(self) -> Opened:
        volume, mounted, engine = self._require_open()
        self._first_write = FirstWrite(volume.durable)
        if self.config.holds_commits:
            mounted.acknowledge_until(0.0)
        self._noting = asyncio.create_task(self._note_good_start(engine), name=f"note {self.config.instance_id}")
        return Opened(volume.epoch, volume.vdl, engine.pid or 0, engine.port, dict(self._stages_s), self._troubles())

    def _on_fenced(self) -> None:
        self._retryable = False
        self._fenced.set()

    async def _open_mount(self) -> None:
        config, dirs = self.config, self.config.dirs
        # At the same time: what an earlier incarnation left here can append no more than it could elsewhere.
        volume, prepared = await both(self._seal(), self._prepare())
        if volume.tail_lsn == 0 and not config.initialise:
            raise EngineError(f"volume {config.volume.volume_id} is empty, though it held a data directory")
        if config.initialise:
            with self._stage("initialise", IncarnationPhase.INITIALISING):
                await self._initialise(volume, prepared)
        engine = self._make_engine(prepared)
        with self._stage("mount", IncarnationPhase.MOUNTING):
            mounted = self._mounted = await mount_for(
                prepared,
                engine,
                volume,
                dirs.mount,
                writer=volume,
                cache_bytes=config.cache_bytes,
                told=self._tell,
                groups_max=config.groups_max,
            )
            describe({"aurora.bytes.cached": int(mounted.stats()["cached_bytes"])})

    async def _seal(self) -> Volume:
        config = self.config
        with self._stage("seal", IncarnationPhase.SEALING):
            volume = self._volume = await Volume.open(
                config.volume,
                config.nodes,
                timeout_s=config.open_timeout_s,
                on_fenced=self._on_fenced,
                az=config.az,
                epochs=config.epochs,
            )
            describe(
                {"aurora.epoch": volume.epoch, "aurora.lsn.end": volume.tail_lsn, "aurora.nodes": len(config.nodes)}
            )
        return volume

    async def _start_engine(self) -> None:
        config, dirs = self.config, self.config.dirs
        _, mounted, engine = self._require_open()
        with self._stage("engine", IncarnationPhase.STARTING):
            mounted.trace_reads()
            if config.repairs:
                await engine.repair(
                    dirs.mount,
                    list(dict.fromkeys(repair.partition(":")[0] for repair in config.repairs)),
                    env=mounted.engine_environment(),
                    pass_fds=mounted.pass_fds,
                    password=config.superuser_password,
                )
            await start_on(mounted, engine, timeout_s=config.open_timeout_s)
            # What its start has only ordered, readers that open next must find: the settings that it noted, for one.
            await mounted.flush(timeout_s=config.open_timeout_s)
            if engine.pid is not None:
                write_pid_file(dirs.pid_file, engine.pid)
            await self._give_password(engine)

    async def take_over(self, follower: Follows, mounted: MountedVolume, engine: Engine, timeout_s: float) -> None:
        """Makes the writer's engine of one that follows, on its mount: instead of `start`, before `_succeed`. Raises
        AuroraError, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            volume = await self._seal()
            table = asyncio.create_task(volume.read_file_table(volume.tail_lsn), name="read the table of files")
            try:
                with self._stage("drain", IncarnationPhase.MOUNTING):
                    await follower.drain(volume.tail_lsn)
                with self._stage("exchange", IncarnationPhase.MOUNTING):
                    files = await table
                    says = await engine.succession(mounted.mount_dir, files)
                    first = Guard(says.decides, says.first_byte, says.end_byte, says.page)
                    floor = follower.floor(says.recovers_from)
                    rules = Rules(first, says.of_volume, says.removes, floor, says.reads, dict(says.same))
                    owed = await mounted.exchange(volume, files, rules, groups_max=self.config.groups_max)
                    describe({"aurora.pages.owed": owed})
            finally:
                table.cancel()
            with self._stage("promote", IncarnationPhase.STARTING):
                await engine.promote(timeout_s=timeout_s)
            mounted.begin_settling()

    async def abandon(self) -> None:
        """After a `take_over` that failed."""
        self._phase = IncarnationPhase.ENDED
        await self._close_below()

    async def _give_password(self, engine: Engine) -> None:
        """A new cluster's superuser gets its password; later that is its owner's to change, and nobody logs in."""
        if not engine.first_start:
            return
        try:
            await engine.give_password(self.config.superuser_password, timeout_s=self.config.open_timeout_s)
        except EngineError as error:
            if self.config.initialise:
                raise
            _log.warning("%s: whether its superuser has a password is not known: %s", self.config.instance_id, error)

    async def _note_good_start(self, engine: Engine) -> None:
        try:
            await engine.note_good_start()
        except AuroraError as error:
            _log.warning(
                "%s: its configuration could not be kept as one that works: %s", self.config.instance_id, error
            )
        try:
            await engine.complete_databases()
        except AuroraError as error:
            if self._phase is IncarnationPhase.AVAILABLE:  # else it was cut short, and the next start goes on with it
                _log.warning("%s: some database lacks functions: %s", self.config.instance_id, error)
        if self.config.goes_on:
            # Readers' restartpoints follow it: until then, they are on the timeline that this writer has left. Not
            # beside the first of its sessions, which read all that they need from the volume.
            await asyncio.sleep(WRITE_BACK_AFTER_S)  # not synchronisation: a rest
            with contextlib.suppress(EngineError):
                await engine.write_back(timeout_s=WRITE_BACK_TIMEOUT_S)

    async def _initialise(self, volume: Volume, prepared: PreparedEngine) -> None:
        """What is in the volume decides: whoever asks may not have heard of an initialisation that was completed."""
        if volume.tail_lsn == 0:
            await import_image(prepared, volume)
        elif not await is_complete(prepared, volume):
            raise HalfMadeVolumeError(f"the initialisation of volume {volume.spec.volume_id} was cut short")

    def _require_open(self) -> tuple[Volume, MountedVolume, Engine]:
        if self._volume is None or self._mounted is None or self._engine is None:
            raise UsageError(f"writer {self.config.instance_id} is not open")
        return self._volume, self._mounted, self._engine

    # ---- serving

    def _ends(self) -> list[End]:
        volume, mounted, engine = self._require_open()
        watch = writer_watch(engine, volume, self.config.health, self.config.instance_id)
        return [
            End(
                "fence",
                self._fenced.wait(),
                lambda _: ("a higher epoch exists: another writer has the volume", 0),
            ),
            mount_end(mounted),
            exit_end(engine),
            hung_end(watch),
        ]

    def status(self) -> InstanceStatus:
        """A look, without waiting."""
        volume, engine = self._volume, self._engine
        stats = self._stats()
        if volume is None:
            return InstanceStatus(self._phase, reason=self._reason)
        groups = tuple(placement.group for placement in volume.spec.groups)
        return InstanceStatus(
            phase=self._phase,
            epoch=volume.epoch,
            vdl=volume.vdl,
            tail_lsn=volume.tail_lsn,
            pid=(engine.pid or 0) if engine is not None else 0,
            port=engine.port if engine is not None else 0,
            groups=groups,
            used_bytes=int(stats.get("used_bytes", 0)),
            free_bytes=int(stats["free_bytes"]) if "free_bytes" in stats else None,
            reason=self._reason,
            stats=stats,
            placements=volume.spec.groups,
            troubles=self._troubles(),
            repaired=self.config.repairs if self._phase is IncarnationPhase.AVAILABLE else (),
            socket_dir=str(engine.socket_dir) if engine is not None else "",
            hand_over=str(engine.hand_over or "") if engine is not None else "",
            declared_memory_bytes=self.config.memory_bytes,
            size=self._size,
        )

    async def first_write(self, after_ns: int, timeout_s: float) -> tuple[int, int] | None:
        """See FirstWrite.after; None as well while it is not open."""
        return await self._first_write.after(after_ns, timeout_s) if self._first_write is not None else None

    async def do(self, command: Command[T]) -> T:
        """Carries out a command. Raises UsageError for one that a writer does not take."""
        answer: Any
        match command:
            case commands.Configure(parameters):
                answer = await self.configure(parameters)
            case commands.UpdateNodes(nodes):
                answer = await self.update_nodes(nodes)
            case commands.AddGroup(placement):
                answer = await self.add_group(placement)
            case commands.ChangeMembers(placement, filled):
                answer = await self.change_members(placement, filled)
            case commands.HoldHorizon(horizons, lease_s):
                answer = await self._require_open()[2].hold_horizon(horizons, lease_s)
            case commands.Scale(order):
                answer = await self.scale(order)
            case commands.WriteBack(timeout_s):
                answer = await self.write_back(timeout_s)
            case commands.ReplicaStatus(rows, regions):
                answer = self._require_open()[2].tell_replicas(rows, regions)
            case commands.AcknowledgeUntil(until_s, lowers):
                answer = self._require_open()[1].acknowledge_until(until_s, lowers=lowers)
            case commands.FirstWrite(after_ns, timeout_s):
                answer = await self.first_write(after_ns, timeout_s)
            case _:
                raise UsageError(f"a writer does not take {type(command).__name__}")
        return cast("T", answer)

    async def write_back(self, timeout_s: float) -> None:
        """See Engine.write_back. Done again while it takes long: meanwhile less is changed each time."""
        _, mounted, engine = self._require_open()
        mounted.hurry()
        ends_s = time.monotonic() + timeout_s
        for _ in range(WRITE_BACKS_MAX):
            began_s = time.monotonic()
            try:
                await engine.write_back(timeout_s=ends_s - began_s)
            except EngineError as error:  # its end then takes longer, and that is all
                _log.warning("%s could not write back before its end: %s", self.config.instance_id, error)
                return
            if time.monotonic() - began_s < WRITE_BACK_SHORT_S or time.monotonic() >= ends_s:
                return

    async def configure(self, parameters: Mapping[str, str]) -> None:
        """Other parameters of the cluster, see Engine.configure."""
        _, _, engine = self._require_open()
        self._parameters = dict(parameters)
        await engine.configure(parameters, self._size)

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        """New addresses of storage nodes."""
        volume, _, _ = self._require_open()
        await volume.update_nodes(nodes)

    async def add_group(self, placement: GroupPlacement) -> None:
        """Another protection group for the volume; its segments exist on a write quorum."""
        volume, mounted, _ = self._require_open()
        if placement.group not in {known.group for known in volume.spec.groups}:
            await volume.members.add_group(placement)
            mounted.add_group(placement)

    async def change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        """One step of a change of the volume's members, as `Members.try_step`."""
        volume, _, _ = self._require_open()
        return await volume.members.try_step(placement, filled)

    # ---- ending

    async def stop(self, mode: StopMode = StopMode.FAST, *, reopens: bool = False) -> Outcome:
        """Ends in order, if its last redo could be acknowledged: an engine waits for that."""
        if self._mounted is not None:
            self._mounted.hurry()
        held = self._mounted is not None and self._mounted.holds_commits
        return await super().stop(StopMode.KILL if held else mode, reopens=reopens)

    async def _before_mount_goes(self) -> None:
        """Everything that the engine wrote is durable."""
        if self._mounted is None:
            return
        await self._mounted.flush(timeout_s=self.config.stop_timeout_s)
        if self._granted is not None and self._volume is not None:
            self._left = await self._volume.read_file_table(self._volume.tail_lsn)

    def _reads_table(self) -> Callable[[], Awaitable[FileTable]]:
        """See Opening."""
        volume, _, _ = self._require_open()
        return volume.read_file_table

    async def leave_tree(self) -> None:
        """See Opening. What the volume was at its end it is when it opens next, unless another writer comes between."""
        left, self._left = self._left, None
        if left is None or self._account is None:
            return
        uid, gid = (self._account.uid, self._account.gid) if self._account.switch else (None, None)
        volume = str(self.config.volume.volume_id)
        try:
            await asyncio.to_thread(leave_in_waiting, left, self.config.dirs.mount, volume, uid, gid)
        except AuroraError as error:
            _log.warning("%s: its next mount is not prepared: %s", self.config.instance_id, error)

    async def _before_engine_goes(self) -> None:
        if self._noting is not None:
            self._noting.cancel()

    async def _close_below(self) -> None:
        if self._volume is not None:
            await self._try("close the volume", self._volume.close, CLOSE_TIMEOUT_S)
