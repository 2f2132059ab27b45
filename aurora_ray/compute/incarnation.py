"""What all kinds of incarnation have in common: parts that are opened together and thrown away together.

    stages of opening -> serve until something ends -> everything is torn down, and the outcome says what it was

There is no repair. Whatever ends first is the outcome; later errors on the way down are logged and never hide it. The
single orderly way out is `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from opentelemetry import trace

from aurora_ray import telemetry
from aurora_ray.compute.capacity import Granted
from aurora_ray.compute.config import IncarnationPhase, InstanceConfig, InstanceStatus, Opened, Outcome
from aurora_ray.compute.directories import prepare_instance_dirs
from aurora_ray.compute.engines import prepare_engine
from aurora_ray.compute.leftovers import end_leftovers
from aurora_ray.compute.names import NamesInWaiting
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.network import claim_port
from aurora_ray.engine.registry import adapter
from aurora_ray.engine.sizes import size_on
from aurora_ray.errors import AuroraError, EngineError, FencedError, UsageError
from aurora_ray.troubles import Trouble

if TYPE_CHECKING:
    from aurora_ray.compute.config import CapacityOrder
    from aurora_ray.compute.engines import PreparedEngine
    from aurora_ray.compute.watch import Watch
    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import Engine, EngineExit
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.mount.mount import MountedVolume

S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger(__name__)
KILL_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
WRITE_BACK_TIMEOUT_S = 60.0  # of an engine that serves meanwhile


class End(NamedTuple):
    """Something that ends an incarnation when it returns. `reason`: of its result, why, and when (Unix ns) all was last
    known to be good (0: now)."""

    name: str
    wait: Coroutine[Any, Any, Any]
    reason: Callable[[Any], tuple[str, int]]


class Opening(ABC):
    """Made for one `start`; a new incarnation is a new object. All methods belong to one event loop."""

    kind: str  # in spans and sentences
    asked_mode: ClassVar[StopMode] = StopMode.FAST  # how its engine ends when it is to end in order

    def __init__(self, config: InstanceConfig) -> None:
        self.config = config
        machine, order = this_machine(), config.capacity
        self._granted = Granted(config, order, machine) if order is not None else None
        self._taken_back: list[Granted] = []
        self._size = self._granted.size if self._granted is not None else size_on(machine, config.memory_bytes)
        self._parameters = dict(config.parameters)
        self._phase = IncarnationPhase.SEALING
        self._mounted: MountedVolume | None = None
        self._engine: Engine | None = None
        self._account: EngineAccount | None = None
        self._names: NamesInWaiting | None = None
        self._watch: asyncio.Task[None] | None = None
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._retryable = True
        self._stages_s: dict[str, float] = {}
        self._moving = ""  # how far what is going on is, in words
        self._ended_ns = (0, 0)  # Unix times: last known to be good, end noticed

    # ---- what a kind is

    @abstractmethod
    async def _open_mount(self) -> None:
        """All that comes before the engine's start, within `config.open_timeout_s`."""

    @abstractmethod
    async def _start_engine(self) -> None:
        """Takes as long as it moves."""

    @abstractmethod
    def _opened(self) -> Opened:
        """It accepts statements."""

    @abstractmethod
    def _ends(self) -> list[End]:
        """What ends it. Where several have, the first of them is the reason."""

    @abstractmethod
    async def _close_below(self) -> None:
        """Closes what the mount stands on. Goes on whatever happens on the way (`_try`)."""

    @abstractmethod
    def status(self) -> InstanceStatus:
        """A look, without waiting."""

    async def _before_mount_goes(self) -> None:  # noqa: B027 - most kinds have nothing to do here
        """In an orderly end, when the engine has shut down."""

    def _reads_table(self) -> Callable[[], Awaitable[FileTable]] | None:
        """What reads the volume's table of files as of now; None if nobody mounts that again."""
        return None

    async def leave_tree(self) -> None:  # noqa: B027
        """After an orderly end: the names of the next mount, which takes time that whoever wakes it would wait."""

    async def _before_engine_goes(self) -> None:  # noqa: B027
        """Before the engine is killed, if it still runs."""

    # ---- opening

    async def start(self) -> Opened:
        """Opens everything; returns when the engine accepts statements. On failure nothing is left running."""
        config = self.config
        attributes = {"aurora.cluster": config.cluster, "aurora.instance": config.instance_id, "aurora.az": config.az}
        try:
            with telemetry.span(f"{self.kind}.open", attributes):
                async with asyncio.timeout(config.open_timeout_s):
                    await self._open_mount()
                await self._start_engine()
                if self._granted is not None and self._engine is not None and self._mounted is not None:
                    await self._granted.begin(self._engine, self._mounted)
        except BaseException as error:
            await self._tear_down(f"it could not be opened: {sentence(error)}", asked=False, later=True)
            if isinstance(error, TimeoutError):
                stage = self.stuck()
                raise EngineError(
                    f"{config.instance_id} was not open within {config.open_timeout_s:g} s: {stage}."
                ) from error
            raise
        return self._serve()

    def _serve(self) -> Opened:
        config = self.config
        self._phase = IncarnationPhase.AVAILABLE
        opened = self._opened()
        if (read := self._reads_table()) is not None and self._account is not None:
            self._names = NamesInWaiting(read, config.dirs.mount, str(config.volume.volume_id), self._account)
        self._watch = asyncio.create_task(self._supervise(), name=f"watch {config.instance_id}")
        return opened

    async def _succeed(self, former: Opening) -> Opened:
        """Goes on with the mount and the engine of another one, which has let go of them (`_let_go`)."""
        self._mounted, self._engine, self._account = former._mounted, former._engine, former._account
        self._granted, self._taken_back, self._size = former._granted, former._taken_back, former._size
        self._parameters = former._parameters
        if former._names is not None:
            await former._names.close()
        former._mounted = former._engine = former._names = former._granted = None
        former._taken_back = []
        return self._serve()

    def succeeded(self) -> None:
        """Another incarnation goes on with what this one had."""
        self._phase = IncarnationPhase.ENDED
        if not self._outcome.done():
            self._outcome.set_result(Outcome(True, "it went on as the writer", self._retryable, *self._ended_ns))

    async def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    async def _prepare(self) -> PreparedEngine:
        """The engine's programs and the instance's directories, where nothing of an earlier incarnation is at work."""
        dirs = self.config.dirs
        with self._stage("prepare", IncarnationPhase.SEALING):
            prepared = await prepare_engine(self.config.engine)
            prepare_instance_dirs(dirs, prepared.account)
            await end_leftovers(dirs.pid_file, dirs.mount, prepared.adapter.programs)
            if self.config.port and self.config.role.traits.engine:
                claim_port(self.config.host, self.config.port)  # if it is taken, that is better known before the mount
        return prepared

    def _make_engine(self, prepared: PreparedEngine) -> Engine:
        config = self.config
        self._account = prepared.account
        self._engine = prepared.make(
            config.dirs.run,
            self._size,
            dict(config.parameters),
            host=config.host,
            port=config.port,
            name=config.instance_id,
        )
        return self._engine

    @contextmanager
    def _stage(self, name: str, phase: IncarnationPhase) -> Iterator[None]:
        """One stage of opening: what `status` says meanwhile, a span, and its seconds."""
        self._phase = phase
        started_s = time.monotonic()
        with telemetry.span(f"{self.kind}.{name}"):
            yield
        self._moving = ""
        self._stages_s[name] = round(time.monotonic() - started_s, 4)

    def _tell(self, words: str) -> None:
        self._moving = words

    def stuck(self) -> str:
        """What it is at, and what it has done, for whoever does not wait for it any longer."""
        done = ", ".join(f"{stage} took {seconds:.1f} s" for stage, seconds in self._stages_s.items())
        return f"stuck while {self._phase}" + (f" ({done})" if done else "")

    # ---- serving

    async def scale(self, order: CapacityOrder | None) -> float:
        """See commands.Scale. Raises UsageError while it is not open."""
        engine, mounted = self._engine, self._mounted
        if engine is None or mounted is None or self._phase is not IncarnationPhase.AVAILABLE:
            raise UsageError(f"{self.config.instance_id} is not open")
        with telemetry.span("instance.scale"):
            with telemetry.stage_span("instance.scale.limit"):
                await self._limit(order, engine, mounted)
            with telemetry.stage_span("instance.scale.configure"):
                await engine.configure(self._parameters, self._size)
        return self._granted.acu if self._granted is not None else 0.0

    async def _limit(self, order: CapacityOrder | None, engine: Engine, mounted: MountedVolume) -> None:
        granted = self._granted
        if order is None:
            self._granted = None
            self._size = size_on(this_machine(), self.config.memory_bytes)
            if granted is not None:
                self._size = replace(
                    self._size, least_bytes=granted.size.least_bytes, most_bytes=granted.size.most_bytes
                )
                self._taken_back.append(granted)
                await granted.end(mounted)
        elif granted is None:
            granted = Granted(self.config, order, this_machine(), self._size)
            await granted.begin(engine, mounted)
            self._granted, self._size = granted, granted.size
        else:
            await granted.scale(order, mounted)
            self._size = granted.size

    def counters(self) -> Mapping[str, float]:
        """Of an instance with a capacity: what says whether it is enough. From any thread."""
        granted, mounted = self._granted, self._mounted
        if granted is None or mounted is None:
            return {}
        return {"held_back": granted.held_back_s(), "misses": float(mounted.stats().get("pages_fetched", 0))}

    def _stats(self) -> dict[str, int | float]:
        stats = dict(self._mounted.stats()) if self._mounted is not None else {}
        if self._granted is None:
            return stats
        slots = adapter(self.config.engine.engine).slots(self.config.dirs.mount)
        return stats | {"replication_slots": slots} | dict(self._granted.stats())

    async def wait_ended(self) -> Outcome:
        """Waits, without a limit, until everything is torn down."""
        return await asyncio.shield(self._outcome)

    async def _supervise(self) -> None:
        """Waits for the first part that ends, and ends the others."""
        ends = self._ends()
        waits = [asyncio.create_task(end.wait, name=f"{end.name} of {self.config.instance_id}") for end in ends]
        reason, good_at_ns = "", 0
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            # Where several parts ended, the engine often was only the first to notice.
            end, wait = next((end, wait) for end, wait in zip(ends, waits, strict=True) if wait.done())
            reason, good_at_ns = end.reason(wait.result())
        except AuroraError as error:
            reason = sentence(error)
        except Exception as error:  # nothing would be watched any more
            _log.exception("%s: what watches it failed", self.config.instance_id)
            reason = f"what watches it failed: {sentence(error)}"
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        _log.warning("%s ends: %s", self.config.instance_id, reason)
        self._ended_ns = (good_at_ns or time.time_ns(), time.time_ns())
        await self._tear_down(reason, asked=False, later=True)

    @property
    def _reason(self) -> str:
        """Why it ended, or how far its start is."""
        ended = self._outcome.result().reason if self._outcome.done() else ""
        return ended or self._moving or (self._engine.recovering if self._engine is not None else "")

    def _troubles(self) -> tuple[Trouble, ...]:
        found = self._engine.troubles if self._engine is not None else ()
        return tuple(Trouble(trouble.code, self.config.instance_id, trouble.sentence) for trouble in found)

    # ---- ending

    async def stop(self, mode: StopMode = StopMode.FAST, *, reopens: bool = False) -> Outcome:
        """Ends in order: the engine, then what it stands on. `reopens`: somebody waits for what opens next in the same
        place, which then sees to the removal of the mount."""
        if self._phase in (IncarnationPhase.STOPPING, IncarnationPhase.ENDED):
            return await self.wait_ended()
        await self._stop_watching()
        self._phase = IncarnationPhase.STOPPING
        if self._granted is not None:
            self._granted.stop_counting()
        reason = "it was asked to stop"
        if self._engine is not None:
            try:
                ordered = self.asked_mode if mode is StopMode.FAST else mode
                exit_ = await self._engine.stop(ordered, timeout_s=self.config.stop_timeout_s)
                await self._before_mount_goes()
                if exit_ is not None and not exit_.clean:
                    reason = f"it was asked to stop; the engine ended with code {exit_.returncode}"
            except AuroraError as error:
                reason = f"it was asked to stop and could not do so in order: {sentence(error)}"
        await self._tear_down(reason, asked=True, later=reopens)
        return await self.wait_ended()

    async def _tear_down(self, reason: str, *, asked: bool, later: bool) -> None:
        """Ends what there is, in the order of dependence; goes on whatever happens on the way."""
        if self._names is not None:
            await self._names.close()
        await self._before_engine_goes()
        engine, mounted = self._engine, self._mounted
        if engine is not None and engine.pid is not None:
            await self._try(
                "kill the engine", lambda: engine.stop(StopMode.KILL, timeout_s=KILL_TIMEOUT_S), 2 * KILL_TIMEOUT_S
            )
        self._engine = None
        for granted in (*self._taken_back, *([self._granted] if self._granted is not None else ())):
            granted.close()
        if mounted is not None:
            await self._try("discard the mount", lambda: mounted.close(later=later), CLOSE_TIMEOUT_S)
        self._mounted = None
        await self._close_below()
        self._phase = IncarnationPhase.ENDED
        if not self._outcome.done():
            self._outcome.set_result(Outcome(asked, reason, self._retryable, *self._ended_ns))

    async def _try(self, what: str, step: Callable[[], Awaitable[object]], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await step()
        except FencedError:
            pass  # that may be why we are here
        except Exception:
            _log.exception("could not %s of %s", what, self.config.instance_id)


async def both(one: Coroutine[Any, Any, S], other: Coroutine[Any, Any, T]) -> tuple[S, T]:
    """Does both at the same time. Raises what either raises, when the other has ended too."""
    try:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(one), group.create_task(other)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return first.result(), second.result()


def describe(attributes: telemetry.Attributes) -> None:
    """More about the stage that is going on."""
    trace.get_current_span().set_attributes(attributes)


def exit_end(engine: Engine) -> End:
    """The engine's own end."""

    def reason(exit_: EngineExit) -> tuple[str, int]:
        code = exit_.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the engine (process {exit_.pid}) {how}", exit_.ended_ns

    return End("engine exit", engine.wait_exit(), reason)


def mount_end(mounted: MountedVolume) -> End:
    """The mount cannot go on."""
    return End("mount failure", mounted.wait_failed(), lambda error: (f"the mount failed: {sentence(error)}", 0))


def hung_end(watch: Watch) -> End:
    """The engine does nothing."""
    return End("engine health", watch.wait_hung(), lambda found: (f"the engine is hung: {found.why}", watch.good_at_ns))


def sentence(error: object) -> str:
    """An error in words, to be part of a sentence."""
    text = str(error) or type(error).__name__
    return text.rstrip(".")
