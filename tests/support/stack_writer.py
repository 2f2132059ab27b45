"""A writer without Ray, as a program of its own: `python -m tests.support.stack_writer CONFIG.json`.

Opens it, prints one line of JSON (see `WriterReport`) and serves until it is terminated (SIGTERM: an orderly end) or
something ends by itself; then it prints a second line that says what. On SIGUSR1 it logs what it is waiting for.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aurora_ray.compute.config import EngineChoice, InstanceConfig
from aurora_ray.compute.directories import prepare_data_dir
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.volume.spec import NodeAddress, VolumeSpec
from tests.support.secret import take_secret

ACCOUNT = os.environ.get("AURORA_ENGINE_USER", "aurora-ray")
CACHE_BYTES = 1 << 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriterOrder:
    """What the program is told; JSON of it is the file named on its command line."""

    name: str
    data_dir: str
    spec: dict[str, Any]
    nodes: list[list[str]]
    port: int
    password: str
    version: str
    initialise: bool
    open_timeout_s: float

    def config(self) -> InstanceConfig:
        """As the writer wants it."""
        return InstanceConfig(
            cluster="stack",
            instance_id=self.name,
            az="a",
            volume=VolumeSpec.from_dict(self.spec),
            nodes=tuple(NodeAddress(*node) for node in self.nodes),
            engine=EngineChoice("postgres", self.version, Path(self.data_dir), ACCOUNT),
            port=self.port,
            superuser_password=self.password,
            initialise=self.initialise,
            cache_bytes=CACHE_BYTES,
            open_timeout_s=self.open_timeout_s,
        )


@dataclass(frozen=True, slots=True)
class WriterReport:
    """An open writer. `pid` is the postmaster's, `stages_s` what each stage of opening took."""

    epoch: int
    vdl: int
    pid: int
    port: int
    stages_s: dict[str, float]


async def _serve(order: WriterOrder) -> int:
    config = order.config()
    prepare_data_dir(config.engine.data_dir, passable=find_account(ACCOUNT).switch)
    writer = Writer(config)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, _log_waits, writer)
    asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, asked.set)
    opened = await writer.start()
    _say(asdict(WriterReport(opened.epoch, opened.vdl, opened.pid, opened.port, opened.stages_s)))
    waits = {asyncio.create_task(asked.wait()), asyncio.create_task(writer.wait_ended())}
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    outcome = await writer.stop()
    _say({"ended": outcome.reason})
    return 0 if outcome.asked else 3


def _log_waits(writer: Writer) -> None:
    lines = [str(writer.status())]
    volume = writer._volume
    if volume is not None:
        lines.append(f"acknowledged: {volume.redo._quorum._acked}; {volume.stats()}")
        for name, stream in volume._fanout._streams.items():
            queues = f"{len(stream._waiting)} wait, {len(stream._sent)} sent"
            lines.append(f"{name}: installed {stream.installed}, {queues}")
    for task in asyncio.all_tasks():
        stack = task.get_stack()
        lines.append(f"task {task.get_name()}: {stack[-1] if stack else task}")
    _log.warning("waiting:\n%s", "\n".join(lines))


def _say(fact: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def main() -> int:
    """The exit code: 0 after an orderly end, 3 when something ended by itself."""
    take_secret()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return asyncio.run(_serve(WriterOrder(**json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    sys.exit(main())
