"""A writer without Ray, as a program of its own: `python -m tests.support.stack_writer CONFIG.json`.

Opens the volume, mounts it, starts PostgreSQL, prints one line of JSON (see `WriterReport`) and serves until it is
terminated (SIGTERM: an orderly end) or something ends by itself; then it prints a second line that says what. On
SIGUSR1 it logs what it is waiting for.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aurora_ray.compute.leftovers import end_leftovers, write_pid_file
from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.image import import_records
from aurora_ray.engine.install import find_install, stage
from aurora_ray.engine.postgres import PostgresEngine
from aurora_ray.engine.postgres_control import ClusterIdentity
from aurora_ray.engine.postgres_image import prepare_image
from aurora_ray.engine.postgres_settings import VOLATILE_PATTERNS
from aurora_ray.volume.client import Volume
from aurora_ray.volume.mount import MountedVolume
from aurora_ray.volume.spec import NodeAddress, VolumeSpec

_log = logging.getLogger(__name__)
ACCOUNT = os.environ.get("AURORA_ENGINE_USER", "aurora-ray")
EAGER = (
    "global/*", "*.conf", "PG_VERSION", "base/*/PG_VERSION", "base/*/pg_filenode.map", "pg_xact/*", "pg_multixact/*/*"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WriterConfig:
    """What the program is told. `shared_dir` holds prepared images and copies of engines, for any number of writers."""

    instance_dir: str
    shared_dir: str
    spec: dict[str, Any]
    nodes: list[list[str]]
    port: int
    password: str
    version: str
    open_timeout_s: float = 60.0
    cache_bytes: int = 1 << 30
    shared_buffers_bytes: int = 32 << 20
    parameters: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class WriterReport:
    """An open writer. `pid` is the postmaster's."""

    epoch: int
    vdl: int
    pid: int
    port: int
    seconds: dict[str, float]


async def _serve(config: WriterConfig) -> int:
    directory = Path(config.instance_dir)
    account = find_account(ACCOUNT)
    install = stage(find_install(config.version), account, Path(config.shared_dir) / "engines")
    await end_leftovers(directory / "engine.pid", directory / "mount")
    fenced = asyncio.Event()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    stages = _Stages()
    parts: dict[str, Any] = {}
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _log_waits, parts)
    nodes = [NodeAddress(*node) for node in config.nodes]
    volume = await Volume.open(
        VolumeSpec.from_dict(config.spec), nodes, timeout_s=config.open_timeout_s, on_fenced=fenced.set
    )
    parts["volume"] = volume
    stages.done("seal")
    if volume.tail_lsn == 0:
        image = prepare_image(install, account, Path(config.shared_dir) / "images")
        await import_records(image.records(ClusterIdentity.new(time.time())), volume)
        stages.done("import")
    owner = (account.uid, account.gid) if account.switch else (None, None)
    mounted = await MountedVolume.open(
        volume,
        directory / "mount",
        owner_uid=owner[0],
        owner_gid=owner[1],
        cache_bytes=config.cache_bytes,
        volatile_patterns=[(pattern.kind.value, pattern.pattern) for pattern in VOLATILE_PATTERNS],
        eager=EAGER,
    )
    parts["mount"] = mounted
    stages.done("mount")
    engine = PostgresEngine(
        install,
        account,
        directory / "run",
        port=config.port,
        shared_buffers_bytes=config.shared_buffers_bytes,
        parameters=config.parameters,
    )
    await engine.start(
        directory / "mount",
        env=mounted.engine_environment(),
        pass_fds=mounted.pass_fds,
        timeout_s=config.open_timeout_s,
    )
    assert engine.pid is not None
    write_pid_file(directory / "engine.pid", engine.pid)
    await engine.set_superuser_password(config.password, timeout_s=config.open_timeout_s)
    stages.done("engine")
    _say(asdict(WriterReport(volume.epoch, volume.vdl, engine.pid, engine.port, stages.seconds)))
    reason = await _wait_end(engine, mounted, fenced, asked)
    if asked.is_set():
        await engine.stop(StopMode.FAST)
        await mounted.flush(timeout_s=config.open_timeout_s)
    else:
        await engine.stop(StopMode.KILL)
    end_lsn = volume.vdl
    await mounted.close()
    await volume.close()
    _say({"ended": reason, "vdl": end_lsn})
    return 0 if asked.is_set() else 3


async def _wait_end(engine: PostgresEngine, mounted: MountedVolume, fenced: asyncio.Event, asked: asyncio.Event) -> str:
    waits = {
        asyncio.create_task(asked.wait()): "asked",
        asyncio.create_task(fenced.wait()): "fenced",
        asyncio.create_task(mounted.wait_failed()): "mount",
        asyncio.create_task(engine.wait_exit()): "engine",
    }
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return "; ".join(f"{waits[task]}: {task.result()}" for task in done)


def _log_waits(parts: dict[str, Any]) -> None:
    lines = [f"{name}: {part.stats()}" for name, part in parts.items()]
    if "volume" in parts:
        volume = parts["volume"]
        lines.append(f"acknowledged: {volume._quorum._acked}")
        lines += [
            f"{name}: installed {stream.installed}, {len(stream._waiting)} wait, {len(stream._sent)} sent"
            for name, stream in volume._streams.items()
        ]
    for task in asyncio.all_tasks():
        stack = task.get_stack()
        lines.append(f"task {task.get_name()}: {stack[-1] if stack else task}")
    _log.warning("waiting:\n%s", "\n".join(lines))


class _Stages:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since_s = time.monotonic()

    def done(self, name: str) -> None:
        now_s = time.monotonic()
        self.seconds[name] = round(now_s - self._since_s, 3)
        self._since_s = now_s


def _say(fact: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def main() -> int:
    """The exit code: 0 after an orderly end, 3 when something ended by itself."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return asyncio.run(_serve(WriterConfig(**json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    sys.exit(main())
