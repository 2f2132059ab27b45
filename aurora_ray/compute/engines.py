"""Which adapter runs which engine, and getting it ready before it is needed: programs, account, prepared image.

Everything here is the same for every cluster with the same engine, takes a second or so the first time, and needs
neither volume nor mount. So an instance's process starts it as soon as it exists, while storage still comes up.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import EngineAccount, find_account
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.image import import_records
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, ClusterIdentity
from aurora_ray.engine.postgres.image import PAGE_BYTES, SUPERUSER, PreparedImage, prepare_image
from aurora_ray.engine.postgres.install import find_install, stage
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import UsageError
from aurora_ray.log.layout import NO_GROUP
from aurora_ray.volume.read.pages import PageRange

if TYPE_CHECKING:
    from aurora_ray.compute.config import EngineChoice, WriterConfig
    from aurora_ray.engine.base import Engine
    from aurora_ray.engine.sizes import InstanceSize
    from aurora_ray.volume.write.volume import Volume

POSTGRES: Final = "postgres"
ENGINES: Final = (POSTGRES,)
PAGE_SIZES: Final = {POSTGRES: PAGE_BYTES}
SUPERUSERS: Final = {POSTGRES: SUPERUSER}

# Small files that every start reads: better fetched together than one miss at a time.
EAGER: Final = (
    "global/*",
    "*.conf",
    "PG_VERSION",
    "base/*/PG_VERSION",
    "base/*/pg_filenode.map",
    "pg_xact/*",
    "pg_multixact/*/*",
)

# The catalogs that initdb made, of all databases but the templates (1 and 4): the first session reads dozens of their
# pages one after the other. What users create has numbers of five digits.
SOON: Final = ("base/5/????", "base/?????*/????")

# What an engine's processes run, by the name of the file.
PROGRAMS: Final = ("postgres",)


@dataclass(frozen=True, slots=True)
class PreparedEngine:
    """An engine that can be started at once. `eager`: files that the mount should have before the start; `soon`: those
    that the first sessions will want; `programs`: names of what its processes run."""

    choice: EngineChoice
    account: EngineAccount
    install: EngineInstall
    image: PreparedImage
    eager: tuple[str, ...] = EAGER
    soon: tuple[str, ...] = SOON
    programs: tuple[str, ...] = PROGRAMS

    def make_engine(self, config: WriterConfig, size: InstanceSize) -> Engine:
        """The adapter for one incarnation."""
        return PostgresEngine(
            self.install,
            self.account,
            config.dirs.run,
            host=config.host,
            port=config.port,
            size=size,
            parameters=dict(config.parameters),
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
    if choice.engine not in ENGINES:
        raise UsageError(f"engine {choice.engine!r} is not known; there is: {', '.join(ENGINES)}")
    account = find_account(choice.engine_user)
    install = stage(find_install(choice.version or None, choice.bin_dir), account, choice.data_dir / "engines")
    image = prepare_image(install, account, choice.data_dir / "images")
    return PreparedEngine(choice, account, install, image)


async def import_image(prepared: PreparedEngine, volume: Volume) -> None:
    """Fills an empty volume with a new cluster's data directory; durable when it returns."""
    await import_records(prepared.image.records(ClusterIdentity.new(time.time())), volume)


async def is_complete(volume: Volume) -> bool:
    """Whether a volume holds a complete data directory: the control file is the last thing that `import_image` writes.

    Raises what reading a volume raises.
    """
    entry = (await volume.read_file_table()).lookup(CONTROL_PATH)
    if entry is None or not entry.extents or entry.extents[0] == NO_GROUP:
        return False
    (run,) = await volume.read_pages([PageRange(entry.extents[0], entry.file_id, 0, 1)])
    return any(run.pages)
