"""A writer in a process of its own, without Ray: volume, mount and engine, the same classes as in a cluster.

Started by systems/aurora.py as `python -m benchmarks.stack`. Reads one line of JSON, the configuration; answers with
one line, how the opening went; then answers each command line ("stats", "flush", "stop") with one. Ends with its
standard input, so it cannot outlive whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aurora_ray.compute.assemble import import_image, mount_for, start_on
from aurora_ray.compute.engines import PreparedEngine
from aurora_ray.engine import registry
from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import Engine, StopMode
from aurora_ray.engine.image import import_records, tree_records
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.sizes import size_on
from aurora_ray.mount.mount import MountedVolume
from aurora_ray.rpc.admission import OURS
from aurora_ray.rpc.process import expect_long_service
from aurora_ray.rpc.secret_file import load_secret
from aurora_ray.volume.spec import NodeAddress, VolumeSpec
from aurora_ray.volume.write.volume import Volume

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """What the process needs to know.

    `create`: the volume is new and gets the prepared data directory first. `import_from`: the volume is new and gets
    the data directory at this path, and that is all. `secret_file`: None if this process holds the secret already.
    """

    volume: dict[str, Any]
    nodes: list[dict[str, str]]
    root: str
    bin_dir: str
    images_dir: str
    engine_user: str
    memory_bytes: int  # of the instance
    cache_bytes: int
    parameters: dict[str, str]
    create: bool
    secret_file: str | None = None
    import_from: str | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class Stages:
    """Seconds that each stage took, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Times the block."""
        started_s = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started_s, 4)


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

    async def flush(self) -> dict[str, float]:
        """Makes everything written so far durable."""
        return {"lsn": await self._mounted.flush(timeout_s=TIMEOUT_S)}

    async def restart(self) -> None:
        """The engine alone, in order, on the same mount; its port may be another then."""
        await self._engine.stop(StopMode.FAST, timeout_s=TIMEOUT_S)
        await start_on(self._mounted, self._engine, timeout_s=TIMEOUT_S)

    async def stop(self) -> dict[str, float]:
        """In order: the engine shuts down, and the volume has all of it."""
        stages = Stages()
        with stages.measure("engine"):
            await self._engine.stop(StopMode.FAST, timeout_s=TIMEOUT_S)
        with stages.measure("flush"):
            await self._mounted.flush(timeout_s=TIMEOUT_S)
        return stages.seconds


@asynccontextmanager
async def opened(config: StackConfig, stages: Stages) -> AsyncIterator[tuple[Stack, dict[str, Any]]]:
    """The stack, and how it can be reached."""
    nodes = [NodeAddress(**node) for node in config.nodes]
    spec = VolumeSpec.from_dict(config.volume)
    root = Path(config.root)
    prepared = await asyncio.to_thread(_prepared, config)
    engine = prepared.make(root / "run", size_on(this_machine(), config.memory_bytes), config.parameters)
    passfile = root / "passfile"
    password = prepared.adapter.ensure_passfile(passfile)
    if config.create:
        with stages.measure("create"):
            await Volume.create(spec, nodes, TIMEOUT_S)
    with stages.measure("volume"):
        volume = await Volume.open(spec, nodes, timeout_s=TIMEOUT_S)
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.push_async_callback(volume.close)
        if config.create:
            with stages.measure("import"):
                await import_image(prepared, volume)
        with stages.measure("mount"):
            mounted = await mount_for(prepared, engine, volume, root / "mount", cache_bytes=config.cache_bytes)
        cleanup.push_async_callback(mounted.close)
        cleanup.push_async_callback(engine.stop, StopMode.KILL, timeout_s=TIMEOUT_S)
        with stages.measure("engine"):
            await start_on(mounted, engine, timeout_s=TIMEOUT_S)
        await engine.give_password(password, timeout_s=TIMEOUT_S)
        yield Stack(volume, mounted, engine), {"dsn": engine.dsn(passfile), "engine_pid": engine.pid}


def _prepared(config: StackConfig) -> PreparedEngine:
    adapter = registry.adapter(registry.DEFAULT_ENGINE)
    account, install = find_account(config.engine_user), adapter.find(None, Path(config.bin_dir))
    return PreparedEngine(adapter, account, install, adapter.prepare(install, account, Path(config.images_dir)))


async def import_tree(config: StackConfig, stages: Stages) -> None:
    """Makes the volume, with a data directory that was shut down in order as its content."""
    if config.import_from is None:
        raise ValueError("no data directory to import")
    nodes = [NodeAddress(**node) for node in config.nodes]
    spec = VolumeSpec.from_dict(config.volume)
    await Volume.create(spec, nodes, TIMEOUT_S)
    volume = await Volume.open(spec, nodes, timeout_s=TIMEOUT_S)
    try:
        with stages.measure("import"):
            adapter = registry.adapter(registry.DEFAULT_ENGINE)
            tree = Path(config.import_from)
            records = tree_records(tree, page_size=adapter.page_bytes, last=[adapter.last_file])
            await import_records(records, volume)
    finally:
        await volume.close()


async def _lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().strip()


def _answer(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def _serve() -> None:
    lines = _lines()
    config = StackConfig(**json.loads(await anext(lines)))
    if config.secret_file is not None:
        OURS.set(load_secret(Path(config.secret_file)))
    stages = Stages()
    if config.import_from is not None:
        await import_tree(config, stages)
        _answer(stages_s=stages.seconds)
        return
    async with opened(config, stages) as (stack, facts):
        _answer(**facts, pid=os.getpid(), stages_s=stages.seconds)
        async for command in lines:
            if command == "stats":
                _answer(**stack.stats())
            elif command == "flush":
                _answer(**await stack.flush())
            elif command == "stop":
                _answer(**await stack.stop())
                return


def main() -> None:
    """Serves until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    expect_long_service()
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
