"""One incarnation of a replicator: the owner of a secondary region's volume, which copies the primary's redo into it.

    open the copy for the generation that was noted (whoever had it is sealed out), bring the pages that it lacks,
    follow the log of the primary's storage nodes, until something ends it

No engine runs here. What has to be noted durably before it goes on is the control plane's to note: the turns of the
copy before it is opened, and where a new protection group shall live when it is told so (`AddGroup`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

from aurora_ray.compute import commands
from aurora_ray.compute.config import CopyStatus, IncarnationPhase, InstanceStatus, Opened, Outcome
from aurora_ray.compute.incarnation import sentence
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import AuroraError, DivergedError, OutOfRangeError, UsageError
from aurora_ray.replication.distance import link_of
from aurora_ray.replication.replicator import Order, Phase, Replicator
from aurora_ray.replication.sides import RegionalVolume
from aurora_ray.replication.succession import Succession
from aurora_ray.rpc.admission import Secret
from aurora_ray.rpc.link import Abroad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import CopySource, InstanceConfig
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Copier:
    """See kinds.Incarnation. Made for one `start`. All methods belong to one event loop."""

    def __init__(self, config: InstanceConfig) -> None:
        """Raises UsageError if it is not said what to follow, or something that its region has not noted."""
        if config.source is None:
            raise UsageError(f"{config.instance_id} is a replicator, and nothing says what it shall follow")
        self.config = config
        self._source = _side_of(config.source, config.az)
        self._target = RegionalVolume(config.volume, config.nodes, config.first_lsn, az=config.az)
        self._placed: dict[int, GroupPlacement] = {p.group: p for p in config.volume.groups}
        self._told = asyncio.Event()
        turns = Succession.from_list(config.source.turns)
        held = Succession.from_list(config.turns)
        if turns != held:  # before anything is sealed for it
            raise UsageError(f"the copy is noted to hold {config.turns}, and is to follow {config.source.turns}")
        self._replicator = Replicator(Order(self._source, self._target, turns, held), self)
        self._running: asyncio.Task[None] | None = None
        self._phase = IncarnationPhase.SEALING
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked = False

    # ---- what the replicator has noted, see replication.sides.Notes

    async def place(self, group: int) -> GroupPlacement:
        """Waits until the control plane has declared the group, as it does when it sees it at the primary."""
        while group not in self._placed:
            self._told.clear()
            await self._told.wait()
        return self._placed[group]

    async def note_spec(self, spec: VolumeSpec) -> None:
        """It was declared before it was told to us."""

    async def note_succession(self, succession: Succession) -> None:
        """It was noted before this incarnation was made."""

    # ---- opening

    async def start(self) -> Opened:
        """Seals the copy and begins to follow; returns before all pages are here. Raises what Replicator.run raises."""
        began_s = time.monotonic()
        running = self._running = asyncio.create_task(self._run(), name=f"replicate for {self.config.instance_id}")
        running.add_done_callback(lambda done: done.cancelled() or done.exception())  # the outcome tells of it
        opened = asyncio.create_task(self._replicator.opened.wait(), name="wait for the copy")
        try:
            await asyncio.wait((running, opened), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop(StopMode.KILL, reopens=False)
            raise
        finally:
            opened.cancel()
        if running.done():
            running.result()
        self._phase = IncarnationPhase.AVAILABLE
        status = self._replicator.status()
        return Opened(status.epoch, status.lsn, os.getpid(), 0, {"seal": round(time.monotonic() - began_s, 4)})

    async def _run(self) -> None:
        reason, retryable = "it was asked to stop", True
        try:
            await self._replicator.run()
        except AuroraError as error:
            reason = sentence(error)
            retryable = not isinstance(error, DivergedError | OutOfRangeError | UsageError)
            raise
        except Exception as error:
            _log.exception("%s failed", self.config.instance_id)
            reason = f"it failed: {sentence(error)}"
            raise
        finally:
            self._phase = IncarnationPhase.ENDED
            now_ns = time.time_ns()
            self._outcome.set_result(Outcome(self._asked, reason, retryable, now_ns, now_ns))

    # ---- at work

    async def wait_ended(self) -> Outcome:
        """Waits, without a limit."""
        return await asyncio.shield(self._outcome)

    def status(self) -> InstanceStatus:
        """A look, without waiting."""
        now, volume = self._replicator.status(), self._replicator.volume
        placements = volume.spec.groups if volume is not None else self.config.volume.groups
        ended = self._outcome.result().reason if self._outcome.done() else ""
        return InstanceStatus(
            phase=self._phase,
            epoch=now.epoch,
            vdl=now.lsn,
            tail_lsn=now.lsn,
            pid=os.getpid(),
            groups=tuple(sorted(self._placed)),
            reason=ended or now.trouble,
            placements=placements,
            declared_memory_bytes=self.config.memory_bytes,
            role=self.config.role,
            lag_ms=round(now.lag.lag_ms, 1),
            copy=CopyStatus(
                following=now.phase is Phase.FOLLOWING,
                lsn=now.lsn,
                source_lsn=now.source_lsn,
                lag_ms=now.lag.lag_ms,
                lag_bytes=now.lag.lag_bytes,
                heard_ms=now.lag.heard_ms,
                p50_ms=now.lag.p50_ms,
                p99_ms=now.lag.p99_ms,
                log_bytes=now.log_bytes,
                extents_done=now.seed.extents_done,
                extents_total=now.seed.extents_total,
                trouble=now.trouble,
            ),
        )

    async def do(self, command: Command[T]) -> T:
        """Carries out a command. Raises UsageError for one that a replicator does not take."""
        answer: Any = None
        match command:
            case commands.UpdateNodes(nodes):
                self._target = _at(self._target, nodes)
                await self._replicator.update_nodes(self._source.nodes, nodes)
            case commands.UpdateSource(nodes):
                self._source = _at(self._source, nodes)
                await self._replicator.update_nodes(nodes, self._target.nodes)
            case commands.AddGroup(placement):
                self._placed[placement.group] = placement
                self._told.set()
            case commands.ChangeMembers(placement, filled):
                volume = self._replicator.volume
                if volume is None:
                    raise UsageError(f"replicator {self.config.instance_id} is not open")
                answer = await volume.members.try_step(placement, filled)
                self._placed |= {p.group: p for p in answer}
            case commands.Configure() | commands.ReplicaStatus() | commands.HoldHorizon() | commands.FirstWrite():
                pass  # there is no engine
            case _:
                raise UsageError(f"a replicator does not take {type(command).__name__}")
        return cast("T", answer)

    # ---- ending

    async def stop(self, mode: StopMode, *, reopens: bool) -> Outcome:
        """Ends it, one way or another (both are for engines); what it has handed to the nodes here may become durable
        or not, as after any end."""
        _log.info("%s is asked to end (%s%s)", self.config.instance_id, mode, ", to open again" if reopens else "")
        if self._running is None:
            return Outcome(asked=True, reason="it was not opened")
        if not self._outcome.done():
            self._asked, self._phase = True, IncarnationPhase.STOPPING
            self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._running
        return await self.wait_ended()


def _side_of(source: CopySource, az: str) -> RegionalVolume:
    abroad = Abroad(Secret.from_text(source.secret), link_of(source.one_way_s))
    return RegionalVolume(source.volume, source.nodes, source.first_lsn, abroad, az)


def _at(side: RegionalVolume, nodes: Sequence[NodeAddress]) -> RegionalVolume:
    return RegionalVolume(side.spec, tuple(nodes), side.first_lsn, side.abroad, side.az)
