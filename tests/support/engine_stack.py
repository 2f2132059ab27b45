"""An engine on a volume of a test's cluster, without Ray: `benchmarks.stack` in the test's own process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.stack import Stack, StackConfig, Stages, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall


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
) -> AsyncIterator[tuple[Stack, str]]:
    """PostgreSQL on the volume of a `tests.volume.cluster.Cluster`: the stack, and the engine's DSN.

    With `create` it is a new one; without, the one that was there, and `root` is the same as then.
    """
    config = StackConfig(
        volume=cluster.spec.to_dict(),
        nodes=[{"node_id": n.node_id, "az": n.az, "address": n.address} for n in cluster.addresses],
        root=str(root),
        bin_dir=str(install.bin_dir),
        images_dir=str(image_cache),
        engine_user=account.name,
        memory_bytes=128 << 20,
        cache_bytes=256 << 20,
        parameters=dict(parameters),
        create=create,
        secret_file="",
    )
    async with opened(config, Stages()) as (stack, facts):
        yield stack, facts["dsn"]
