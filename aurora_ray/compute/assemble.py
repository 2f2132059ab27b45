"""Volume, mount and engine put together: the one place for it, whoever runs them (instances, benchmarks, tests)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.engine.image import import_records
from aurora_ray.log.sizes import NO_GROUP
from aurora_ray.mount.evictor import default_cache_bytes
from aurora_ray.mount.mount import MountedVolume
from aurora_ray.volume.read.pages import PageRange

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.compute.engines import PreparedEngine
    from aurora_ray.engine.base import Engine
    from aurora_ray.volume.write.volume import Volume


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
    prepared: PreparedEngine, engine: Engine, volume: Volume, mount_dir: Path, *, cache_bytes: int = 0
) -> MountedVolume:
    """A mount of the volume, as the engine's data directory. `cache_bytes` 0: by what is free on its disk."""
    account = prepared.account
    return await MountedVolume.open(
        volume,
        mount_dir,
        writer=volume,
        owner_uid=account.uid if account.switch else None,
        owner_gid=account.gid if account.switch else None,
        cache_bytes=cache_bytes or default_cache_bytes(mount_dir),
        volatile_patterns=[(pattern.kind.value, pattern.pattern) for pattern in engine.volatile_patterns()],
        eager=prepared.adapter.eager,
        soon=prepared.adapter.soon,
    )


async def start_on(mounted: MountedVolume, engine: Engine, *, timeout_s: float) -> None:
    """Starts the engine on its mount, and makes sure that it speaks to it. `timeout_s`: how long nothing may move."""
    await engine.start(
        mounted.mount_dir,
        env=mounted.engine_environment(),
        pass_fds=mounted.pass_fds,
        timeout_s=timeout_s,
        moved=lambda: mounted.stats().get("pages_fetched"),
    )
    mounted.check_attached()
