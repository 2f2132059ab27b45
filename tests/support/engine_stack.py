"""An engine on a volume of a test's cluster, without Ray: put together as the product does it."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aurora_ray.compute.assemble import import_image, mount_for, start_on
from aurora_ray.compute.engines import PreparedEngine
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.registry import adapter
from aurora_ray.engine.sizes import LEAST_SIZE
from aurora_ray.volume.takeover import ANY_EPOCH
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import Engine, EngineInstall
    from aurora_ray.mount.mount import MountedVolume

TIMEOUT_S = 120.0
CACHE_BYTES = 256 << 20


class Stack:
    """Volume, mount and engine, open."""

    def __init__(self, volume: Volume, mounted: MountedVolume, engine: Engine) -> None:
        self.volume, self._mounted, self._engine = volume, mounted, engine

    @property
    def port(self) -> int:
        """The engine's."""
        return self._engine.port

    def stats(self) -> dict[str, float]:
        """All counters of the data path."""
        return {**self._mounted.stats(), **self.volume.stats()}

    async def flush(self) -> int:
        """Makes everything written so far durable; the LSN."""
        return await self._mounted.flush(timeout_s=TIMEOUT_S)

    async def stop_in_order(self) -> None:
        """As a planned failover does: the engine shuts down, and all that it wrote is durable."""
        await self._engine.stop(StopMode.FAST, timeout_s=TIMEOUT_S)
        await self.flush()

    async def restart(self) -> None:
        """The engine alone, in order, on the same mount; its port may be another then."""
        await self._engine.stop(StopMode.FAST, timeout_s=TIMEOUT_S)
        await start_on(self._mounted, self._engine, timeout_s=TIMEOUT_S)


@asynccontextmanager
async def engine_on(
    cluster: Any,
    root: Path,
    *,
    account: EngineAccount,
    install: EngineInstall,
    image_cache: Path,
    parameters: Mapping[str, str],
    create: bool = True,
    epochs: range = ANY_EPOCH,
) -> AsyncIterator[tuple[Stack, str]]:
    """An engine of the least size on the volume of a `tests.volume.cluster.Cluster`: the stack, and the engine's DSN.

    With `create` it is a new one; without, the one that was there, and `root` is the same as then.
    """
    known = adapter(install.kind)
    image = await asyncio.to_thread(known.prepare, install, account, image_cache)
    prepared = PreparedEngine(known, account, install, image)
    engine = prepared.make(root / "run", LEAST_SIZE, parameters)
    passfile = root / "passfile"
    password = known.ensure_passfile(passfile)
    if create:
        await Volume.create(cluster.spec, cluster.addresses, TIMEOUT_S)
    volume = await Volume.open(cluster.spec, cluster.addresses, timeout_s=TIMEOUT_S, epochs=epochs)
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.push_async_callback(volume.close)
        if create:
            await import_image(prepared, volume)
        mounted = await mount_for(prepared, engine, volume, root / "mount", writer=volume, cache_bytes=CACHE_BYTES)
        cleanup.push_async_callback(mounted.close)
        cleanup.push_async_callback(engine.stop, StopMode.KILL, timeout_s=TIMEOUT_S)
        await start_on(mounted, engine, timeout_s=TIMEOUT_S)
        await engine.give_password(password, timeout_s=TIMEOUT_S)
        yield Stack(volume, mounted, engine), engine.dsn(passfile)
