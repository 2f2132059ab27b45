"""An engine made ready before it is needed: programs, account, prepared image.

Everything here is the same for every cluster with the same engine, takes a second or so the first time, and needs
neither volume nor mount. So an instance's process starts it as soon as it exists, while storage still comes up.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aurora_ray.engine import registry
from aurora_ray.engine.account import EngineAccount, find_account

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aurora_ray.compute.config import EngineChoice
    from aurora_ray.engine.base import Adapter, Engine, EngineInstall, Image
    from aurora_ray.engine.sizes import InstanceSize


@dataclass(frozen=True, slots=True)
class PreparedEngine:
    """An engine that can be started at once."""

    adapter: Adapter
    account: EngineAccount
    install: EngineInstall
    image: Image

    def make(
        self,
        run_dir: Path,
        size: InstanceSize,
        parameters: Mapping[str, str],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str = "",
    ) -> Engine:
        """The engine for one incarnation; port 0 takes a free one."""
        return self.adapter.make(
            self.install, self.account, run_dir, host=host, port=port, size=size, parameters=parameters, name=name
        )


_prepared: dict[EngineChoice, asyncio.Task[PreparedEngine]] = {}


async def prepare_engine(choice: EngineChoice) -> PreparedEngine:
    """Gets an engine ready, once a process; after an error the next call tries again.

    Raises UsageError, ConfigurationError, EngineError.
    """
    task = _prepared.get(choice)
    if task is None or task.get_loop() is not asyncio.get_running_loop() or _failed(task):
        task = _prepared[choice] = asyncio.create_task(asyncio.to_thread(_prepare, choice))
    return await asyncio.shield(task)


def _failed(task: asyncio.Task[PreparedEngine]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _prepare(choice: EngineChoice) -> PreparedEngine:
    adapter = registry.adapter(choice.engine)
    account = find_account(choice.engine_user)
    found = adapter.find(choice.version or None, choice.bin_dir)
    install = adapter.stage(found, account, choice.data_dir / "engines")
    image = adapter.prepare(install, account, choice.images_dir)
    return PreparedEngine(adapter, account, install, image)
