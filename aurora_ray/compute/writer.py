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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry import trace

from aurora_ray import telemetry
from aurora_ray.compute import commands
from aurora_ray.compute.assemble import import_image, is_complete, mount_for, start_on
from aurora_ray.compute.config import HalfMadeVolumeError, Opened, Outcome, WriterConfig, WriterPhase, WriterStatus
from aurora_ray.compute.directories import prepare_instance_dirs
from aurora_ray.compute.engines import prepare_engine
from aurora_ray.compute.first_write import FirstWrite
from aurora_ray.compute.leftovers import end_leftovers, write_pid_file
from aurora_ray.compute.watch import engine_watch
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.sizes import size_on
from aurora_ray.errors import AuroraError, EngineError, FencedError, UsageError
from aurora_ray.troubles import Trouble
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.engines import PreparedEngine
    from aurora_ray.engine.base import Engine, EngineExit
    from aurora_ray.mount.mount import MountedVolume
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress

T = TypeVar("T")

_log = logging.getLogger(__name__)
_KILL_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0


class Writer:
    """Made for one `start`; a new incarnation is a new object. All methods belong to one event loop."""

    def __init__(self, config: WriterConfig) -> None:
        self.config = config
        self._size = size_on(this_machine(), config.memory_bytes)
        self._phase = WriterPhase.SEALING
        self._volume: Volume | None = None
        self._mounted: MountedVolume | None = None
        self._engine: Engine | None = None
        self._watch: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None
        self._fenced = asyncio.Event()
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._first_write: FirstWrite | None = None
        self._stages_s: dict[str, float] = {}
        self._ended_ns = (0, 0)  # Unix times: last known to be good, end noticed

    # ---- opening

    async def start(self) -> Opened:
        """Opens everything; returns when the engine accepts statements. On failure nothing is left running."""
        config = self.config
        attributes = {"aurora.cluster": config.cluster, "aurora.instance": config.instance_id, "aurora.az": config.az}
        try:
            with telemetry.span("writer.open", attributes):
                async with asyncio.timeout(config.open_timeout_s):
                    await self._open_mount()
                await self._start_engine()  # takes as long as it moves
        except BaseException as error:
            await self._tear_down(f"it could not be opened: {_sentence(error)}", asked=False)
            if isinstance(error, TimeoutError):
                stage = self._phase_name()
                raise EngineError(
                    f"{config.instance_id} was not open within {config.open_timeout_s:g} s: {stage}."
                ) from error
            raise
        volume, _, engine = self._require_open()
        self._phase = WriterPhase.AVAILABLE
        self._first_write = FirstWrite(volume.durable)
        self._watch = asyncio.create_task(self._supervise(), name=f"watch {config.instance_id}")
        self._noting = asyncio.create_task(self._note_good_start(engine), name=f"note {config.instance_id}")
        return Opened(volume.epoch, volume.vdl, engine.pid or 0, engine.port, dict(self._stages_s), self._troubles())

    async def _open_mount(self) -> None:
        config, dirs = self.config, self.config.dirs
        with self._stage("prepare", WriterPhase.SEALING):
            prepared = await prepare_engine(config.engine)
            prepare_instance_dirs(dirs, prepared.account)
            await end_leftovers(dirs.pid_file, dirs.mount, prepared.adapter.programs)
        with self._stage("seal", WriterPhase.SEALING):
            volume = self._volume = await Volume.open(
                config.volume,
                config.nodes,
                timeout_s=config.open_timeout_s,
                on_fenced=self._fenced.set,
                az=config.az,
            )
            _describe(
                {"aurora.epoch": volume.epoch, "aurora.lsn.end": volume.tail_lsn, "aurora.nodes": len(config.nodes)}
            )
        if volume.tail_lsn == 0 and not config.initialise:
            raise EngineError(f"volume {config.volume.volume_id} is empty, though it held a data directory")
        if config.initialise:
            with self._stage("initialise", WriterPhase.INITIALISING):
                await self._initialise(volume, prepared)
        engine = self._engine = prepared.make(
            dirs.run, self._size, dict(config.parameters), host=config.host, port=config.port
        )
        with self._stage("mount", WriterPhase.MOUNTING):
            mounted = self._mounted = await mount_for(
                prepared, engine, volume, dirs.mount, cache_bytes=config.cache_bytes
            )
            _describe({"aurora.bytes.cached": int(mounted.stats()["cached_bytes"])})

    async def _start_engine(self) -> None:
        config, dirs = self.config, self.config.dirs
        _, mounted, engine = self._require_open()
        with self._stage("engine", WriterPhase.STARTING):
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
            if engine.pid is not None:
                write_pid_file(dirs.pid_file, engine.pid)
            await self._give_password(engine)

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

    async def _initialise(self, volume: Volume, prepared: PreparedEngine) -> None:
        """What is in the volume decides: whoever asks may not have heard of an initialisation that was completed."""
        if volume.tail_lsn == 0:
            await import_image(prepared, volume)
        elif not await is_complete(prepared, volume):
            raise HalfMadeVolumeError(f"the initialisation of volume {volume.spec.volume_id} was cut short")

    @contextmanager
    def _stage(self, name: str, phase: WriterPhase) -> Iterator[None]:
        """One stage of opening: what `status` says meanwhile, a span, and its seconds."""
        self._phase = phase
        started_s = time.monotonic()
        with telemetry.span(f"writer.{name}"):
            yield
        self._stages_s[name] = round(time.monotonic() - started_s, 4)

    def _require_open(self) -> tuple[Volume, MountedVolume, Engine]:
        if self._volume is None or self._mounted is None or self._engine is None:
            raise UsageError(f"writer {self.config.instance_id} is not open")
        return self._volume, self._mounted, self._engine

    # ---- serving

    async def wait_ended(self) -> Outcome:
        """Waits, without a limit, until everything is torn down."""
        return await asyncio.shield(self._outcome)

    async def _supervise(self) -> None:
        """Waits for the first part that ends, and ends the others."""
        volume, mounted, engine = self._require_open()
        watch = engine_watch(engine, volume, self.config.health, self.config.instance_id)
        exited = asyncio.create_task(engine.wait_exit(), name="engine exit")
        failed = asyncio.create_task(mounted.wait_failed(), name="mount failure")
        fenced = asyncio.create_task(self._fenced.wait(), name="fenced")
        hung = asyncio.create_task(watch.wait_hung(), name="engine health")
        good_at_ns = 0
        try:
            await asyncio.wait({exited, failed, fenced, hung}, return_when=asyncio.FIRST_COMPLETED)
            # Where several parts ended, the engine often was only the first to notice.
            if fenced.done():
                reason = "a higher epoch exists: another writer has the volume"
            elif failed.done():
                reason = f"the mount failed: {_sentence(failed.result())}"
            elif exited.done():
                reason, good_at_ns = _exit_reason(exited.result()), exited.result().ended_ns
            else:
                reason, good_at_ns = f"the engine is hung: {hung.result().why}", watch.good_at_ns
        except EngineError as error:
            reason = _sentence(error)
        finally:
            for wait in (exited, failed, fenced, hung):
                wait.cancel()
        _log.warning("%s ends: %s", self.config.instance_id, reason)
        self._ended_ns = (good_at_ns or time.time_ns(), time.time_ns())
        await self._tear_down(reason, asked=False)

    def status(self) -> WriterStatus:
        """A look, without waiting."""
        volume, engine = self._volume, self._engine
        stats = dict(self._mounted.stats()) if self._mounted is not None else {}
        reason = self._outcome.result().reason if self._outcome.done() else ""
        if volume is None:
            return WriterStatus(self._phase, reason=reason)
        groups = tuple(placement.group for placement in volume.spec.groups)
        return WriterStatus(
            phase=self._phase,
            epoch=volume.epoch,
            vdl=volume.vdl,
            tail_lsn=volume.tail_lsn,
            pid=(engine.pid or 0) if engine is not None else 0,
            port=engine.port if engine is not None else 0,
            groups=groups,
            used_bytes=int(stats.get("used_bytes", 0)),
            free_bytes=int(stats["free_bytes"]) if "free_bytes" in stats else None,
            reason=reason or (engine.recovering if engine is not None else ""),
            stats=stats,
            placements=volume.spec.groups,
            troubles=self._troubles(),
            repaired=self.config.repairs if self._phase is WriterPhase.AVAILABLE else (),
            socket_dir=str(engine.socket_dir) if engine is not None else "",
            declared_memory_bytes=self.config.memory_bytes,
            size=self._size,
        )

    def _troubles(self) -> tuple[Trouble, ...]:
        found = self._engine.troubles if self._engine is not None else ()
        return tuple(Trouble(trouble.code, self.config.instance_id, trouble.sentence) for trouble in found)

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
            case commands.FirstWrite(after_ns, timeout_s):
                answer = await self.first_write(after_ns, timeout_s)
            case _:
                raise UsageError(f"a writer does not take {type(command).__name__}")
        return cast("T", answer)

    async def configure(self, parameters: Mapping[str, str]) -> None:
        """Other parameters of the cluster, see Engine.configure."""
        _, _, engine = self._require_open()
        await engine.configure(parameters)

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

    async def stop(self, mode: StopMode = StopMode.FAST) -> Outcome:
        """Ends in order: engine, then everything it wrote durable, then mount and volume."""
        if self._phase in (WriterPhase.STOPPING, WriterPhase.ENDED):
            return await self.wait_ended()
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        self._phase = WriterPhase.STOPPING
        reason = "it was asked to stop"
        if self._engine is not None and self._volume is not None:
            try:
                exit_ = await self._engine.stop(mode, timeout_s=self.config.stop_timeout_s)
                if self._mounted is not None:
                    await self._mounted.flush(timeout_s=self.config.stop_timeout_s)
                if exit_ is not None and not exit_.clean:
                    reason = f"it was asked to stop; the engine ended with code {exit_.returncode}"
            except AuroraError as error:
                reason = f"it was asked to stop and could not do so in order: {_sentence(error)}"
        await self._tear_down(reason, asked=True)
        return await self.wait_ended()

    async def _tear_down(self, reason: str, *, asked: bool) -> None:
        """Ends what there is, in the order of dependence; goes on whatever happens on the way."""
        engine, mounted, volume = self._engine, self._mounted, self._volume
        if self._noting is not None:
            self._noting.cancel()
        if engine is not None and engine.pid is not None:
            await self._try(
                "kill the engine", lambda: engine.stop(StopMode.KILL, timeout_s=_KILL_TIMEOUT_S), 2 * _KILL_TIMEOUT_S
            )
        self._engine = None
        if mounted is not None:
            await self._try("discard the mount", lambda: mounted.close(later=not asked), _CLOSE_TIMEOUT_S)
        self._mounted = None
        if volume is not None:
            await self._try("close the volume", volume.close, _CLOSE_TIMEOUT_S)
        self._phase = WriterPhase.ENDED
        if not self._outcome.done():
            retryable = not self._fenced.is_set()
            self._outcome.set_result(Outcome(asked, reason, retryable, *self._ended_ns))

    async def _try(self, what: str, step: Callable[[], Awaitable[object]], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await step()
        except FencedError:
            pass  # that may be why we are here
        except Exception:
            _log.exception("could not %s of %s", what, self.config.instance_id)

    def _phase_name(self) -> str:
        done = ", ".join(f"{stage} took {seconds:.1f} s" for stage, seconds in self._stages_s.items())
        return f"stuck while {self._phase}" + (f" ({done})" if done else "")


def _describe(attributes: telemetry.Attributes) -> None:
    """More about the stage that is going on."""
    trace.get_current_span().set_attributes(attributes)


def _exit_reason(exit_: EngineExit) -> str:
    how = f"was killed by signal {-exit_.returncode}" if exit_.returncode < 0 else f"ended with code {exit_.returncode}"
    return f"the engine (process {exit_.pid}) {how}"


def _sentence(error: object) -> str:
    text = str(error) or type(error).__name__
    return text.rstrip(".")
