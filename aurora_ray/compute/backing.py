"""An instance that backs its cluster's volume up: no engine and no mount, a stream from storage nodes to a bucket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from aurora_ray.backup.bucket import Bucket
from aurora_ray.backup.frame import Key
from aurora_ray.backup.store import Store
from aurora_ray.backup.stream import BackupStream
from aurora_ray.compute import commands
from aurora_ray.compute.config import IncarnationPhase, InstanceConfig, InstanceStatus, Opened, Outcome
from aurora_ray.errors import AuroraError, FencedError, UsageError
from aurora_ray.troubles import Trouble, TroubleCode

if TYPE_CHECKING:
    from aurora_ray.compute.commands import Command
    from aurora_ray.engine.base import StopMode

T = TypeVar("T")

_log = logging.getLogger(__name__)


def store_at(url: str, place: str, key_file: str) -> Store:
    """One volume's backup. Raises ConfigurationError for a key that cannot be read, UsageError, BackupError."""
    return Store(Bucket.at(url), place, Key.load(Path(key_file)) if key_file else None)


class Backing:
    """One opening of the backup for writing; see Incarnation."""

    def __init__(self, config: InstanceConfig) -> None:
        self.config = config
        self._phase = IncarnationPhase.SEALING
        self._reason = ""
        self._stream: BackupStream | None = None
        self._running: asyncio.Task[None] | None = None
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def start(self) -> Opened:
        """Begins; whether the object store answers is seen later. Raises ConfigurationError, UsageError."""
        config, order = self.config, self.config.backup
        if order is None:
            raise UsageError(f"{config.instance_id} is not told where to back up")
        store = await asyncio.to_thread(store_at, order.url, order.place, order.key_file)
        self._stream = BackupStream(
            config.volume, config.nodes, store, order.subject, order.retention_s, az=config.az, former=order.former
        )
        self._running = asyncio.create_task(self._run(self._stream), name=f"back up {config.cluster}")
        self._phase = IncarnationPhase.AVAILABLE
        return Opened(0, 0, 0, config.port, {})

    async def _run(self, stream: BackupStream) -> None:
        retryable = True
        try:
            await stream.run()
            reason = "the backup ended"
        except AuroraError as error:
            reason = str(error)
            retryable = error.retryable or isinstance(error, FencedError)
        except Exception as error:
            _log.exception("the backup of %s failed", self.config.cluster)
            reason = f"the backup failed: {error!r}"
        self._end(Outcome(asked=False, reason=reason, retryable=retryable, noticed_ns=time.time_ns()))

    def _end(self, outcome: Outcome) -> None:
        self._phase, self._reason = IncarnationPhase.ENDED, outcome.reason
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def status(self) -> InstanceStatus:
        """A look, without waiting. `vdl`: up to where all is in the bucket."""
        config, stream, order = self.config, self._stream, self.config.backup
        if stream is None or order is None:
            return InstanceStatus(self._phase, reason=self._reason, role=config.role)
        now = stream.status()
        troubles = [Trouble(TroubleCode.BACKUP, config.instance_id, now.trouble)] if now.trouble else []
        return InstanceStatus(
            self._phase,
            vdl=now.lsn,
            reason=self._reason or now.imaging,
            role=config.role,
            troubles=tuple(troubles),
            lag_ms=round(now.lag_s * 1e3, 1),
            described=order.digest,
            stats={
                "backup_cpu_s": round(time.process_time(), 3),  # of this process
                "backup_lsn": now.lsn,
                "backup_source_lsn": now.source_lsn,
                "backup_time_s": now.time_us / 1e6,
                "backup_lag_s": round(now.lag_s, 3),
                "backup_restorable_lsn": now.restorable_lsn,
                "backup_log_bytes": now.log_bytes,
                "backup_put_bytes": now.put_bytes,
                "backup_chunks": now.chunk_count,
                "backup_images": now.image_count,
                "backup_collected": now.collected_count,
            },
        )

    async def do(self, command: Command[T]) -> T:
        """Carries out a command; most are of no account to who has no engine."""
        answer: Any = None
        match command:
            case commands.UpdateNodes(nodes):
                if self._stream is not None:
                    await self._stream.update_nodes(nodes)
            case commands.ChangeMembers():
                raise UsageError("a backup does not take ChangeMembers")
            case _:
                pass
        return cast("T", answer)

    async def stop(self, mode: StopMode, *, reopens: bool = False) -> Outcome:
        """Ends it; what is not in the bucket yet, the next one puts there."""
        del mode, reopens
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        self._end(Outcome(asked=True, reason="it was asked to stop"))
        return await self.wait_ended()

    async def wait_ended(self) -> Outcome:
        """Returns when it has ended."""
        return await asyncio.shield(self._outcome)
