"""The whole data plane as real processes, without Ray: six storage nodes in three zones, and a writer with PostgreSQL.

    with Stack(directory) as stack:
        stack.start()
        stack.writer.open()
        stack.nodes["a1"].kill()
        stack.writer.kill()
        stack.writer.open()

Everything can be killed, stopped and continued at any time; data directories survive.
"""

import asyncio
import json
import os
import secrets
import signal
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from aurora_ray.compute.config import InstanceDirs
from aurora_ray.engine.postgres.server import forget_run
from aurora_ray.rpc.node_client import close_all
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
from aurora_ray.volume.volume_node import VolumeNode
from aurora_ray.volume.write.volume import Volume
from tests.support.polling import poll_until, poll_until_blocking
from tests.support.ports import PortAllocator
from tests.support.secret import hold_secret
from tests.support.stack_process import ChildProcess, describe, title_of, works_below
from tests.support.stack_writer import WriterOrder, WriterReport
from tests.support.timing import scaled

NODES = ("a1", "a2", "b1", "b2", "c1", "c2")
START_TIMEOUT_S = 40.0
OPEN_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
CREATE_TIMEOUT_S = 5.0
PAGE_BYTES = 8192
GROUP_BYTES = 10 << 30


class StorageProcess(ChildProcess):
    """One storage node. `options` are those of `python -m aurora_ray.storage`."""

    def __init__(self, node_id: str, directory: Path, port: int, options: Mapping[str, object]) -> None:
        super().__init__(f"storage node {node_id}", directory / f"{node_id}.out", directory / f"{node_id}.log")
        self.node_id = node_id
        self.az = node_id[0]
        self.data_dir = directory / node_id
        self.port = port
        self.options = dict(options)

    @property
    def address(self) -> NodeAddress:
        """Where it answers."""
        return NodeAddress(self.node_id, self.az, f"127.0.0.1:{self.port}")

    def begin(self) -> None:
        """Starts it without waiting for it."""
        options = {"node-id": self.node_id, "az": self.az, "data-dir": self.data_dir, "port": self.port, **self.options}
        options.setdefault("secret-file", hold_secret())
        self.spawn(["aurora_ray.storage", *(f"--{name}={value}" for name, value in options.items())])

    def start(self) -> None:
        """Starts it and waits until it serves."""
        self.begin()
        self.wait_serving()

    def wait_serving(self) -> None:
        """Waits until it has said where it serves."""
        self.wait_line(START_TIMEOUT_S)


class WriterProcess(ChildProcess):
    """A writer: volume, mount and engine in a process of its own. One incarnation after the other."""

    def __init__(self, stack: "Stack", name: str, port: int) -> None:
        directory = stack.directory
        super().__init__(f"writer {name}", directory / f"{name}.out", directory / f"{name}.log")
        self.instance = name
        self.dirs = InstanceDirs(directory / "data" / "instances" / name)
        self.port = port
        self._stack = stack
        self._report: WriterReport | None = None

    def begin(self) -> None:
        """Starts it without waiting for it."""
        stack = self._stack
        order = WriterOrder(
            name=self.instance,
            data_dir=str(stack.directory / "data"),
            spec=stack.spec.to_dict(),
            nodes=[[node.node_id, node.az, node.address] for node in stack.addresses],
            port=self.port,
            password=stack.password,
            version=stack.version,
            initialise=not stack.initialised,
            open_timeout_s=scaled(OPEN_TIMEOUT_S),
        )
        path = stack.directory / f"{self.instance}.json"
        path.write_text(json.dumps(asdict(order)))
        self._report = None
        self.spawn(["tests.support.stack_writer", str(path)])

    def open(self) -> WriterReport:
        """Starts it and waits until the engine accepts statements."""
        self.begin()
        return self.wait_open()

    def wait_open(self) -> WriterReport:
        """Waits until the engine accepts statements."""
        try:
            line = self.wait_line(OPEN_TIMEOUT_S - 5)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.explain()}") from None
        self._report = WriterReport(**json.loads(line))
        self._stack.initialised = True
        return self._report

    def explain(self) -> str:
        """What it waits for, for messages about hangs."""
        if self.alive:
            os.kill(self.pid, signal.SIGUSR1)
            with suppress(AssertionError):
                poll_until_blocking(lambda: "waiting:" in self.log_tail(60), 2)
        engine = "\n".join(describe(pid) for pid in self.engine_processes())
        return f"{self.log_tail(60)}\nengine processes:\n{engine}"

    @property
    def report(self) -> WriterReport:
        """How the present incarnation opened."""
        assert self._report is not None, f"{self.name} is not open"
        return self._report

    @property
    def ended(self) -> str | None:
        """What it said at its end, if it could say something."""
        lines = self.out_path.read_text().splitlines()
        return str(json.loads(lines[1])["ended"]) if len(lines) > 1 else None

    def close(self) -> None:
        """An orderly end: everything durable, mount discarded."""
        self.terminate()
        code = self.wait(scaled(STOP_TIMEOUT_S))
        assert code == 0, f"{self.name} ended with {code}:\n{self.log_tail()}"

    def accepts(self, stack: "Stack") -> bool:
        """Whether a session can be opened."""
        try:
            stack.connect(self, timeout_s=5).close()
        except psycopg.Error:
            return False
        return True

    def engine_processes(self) -> list[int]:
        """All processes that work in the mount, the engine's own."""
        return works_below(self.dirs.mount)

    def engine_titles(self) -> list[str]:
        """What the engine's processes say that they do, as ps(1) shows it."""
        return [title_of(pid) for pid in self.engine_processes()]

    def wait_engine_gone(self, timeout_s: float = 15.0) -> None:
        """An engine must not outlive its writer."""
        try:
            poll_until_blocking(
                lambda: not self.engine_processes(), timeout_s, what=f"the engine of {self.name} is gone"
            )
        except AssertionError as error:
            raise AssertionError(f"{error}: {[describe(pid) for pid in self.engine_processes()]}") from None


class Stack:
    """Six storage nodes a1 … c2 (the letter is the zone), one volume, and writers on it."""

    def __init__(
        self,
        directory: Path,
        ports: PortAllocator,
        *,
        version: str = "18",
        node_options: Mapping[str, object] | None = None,
    ) -> None:
        self.directory = directory
        self.version = version
        self.password = secrets.token_hex(12)
        self.initialised = False
        placement = GroupPlacement(0, NODES)
        self.spec = VolumeSpec(uuid.uuid4(), PAGE_BYTES, GROUP_BYTES, (placement,))
        self.nodes = {
            node_id: StorageProcess(node_id, directory, ports.allocate(), node_options or {}) for node_id in NODES
        }
        self._ports = ports
        self._writers: list[WriterProcess] = []
        self.writer = self.add_writer("writer")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_writer(self, name: str) -> WriterProcess:
        """Another place where a writer can be opened; opening it seals out whoever has the volume."""
        self._writers.append(WriterProcess(self, name, self._ports.allocate()))
        return self._writers[-1]

    @property
    def addresses(self) -> list[NodeAddress]:
        """Of all nodes, whether they run or not."""
        return [node.address for node in self.nodes.values()]

    def start(self) -> None:
        """Starts the nodes and creates the volume; where a loop runs already, do the two by themselves."""
        self.start_nodes()
        asyncio.run(self.create_volume())

    async def create_volume(self) -> None:
        """On every node: creating it on four is enough for the volume, but here all six shall take part."""
        await Volume.create(self.spec, self.addresses, timeout_s=scaled(20))
        clients = {node.node_id: VolumeNode(node, self.spec.volume_id.bytes) for node in self.addresses}

        async def everywhere() -> bool:
            calls = [
                client.create_segments(self.spec.page_size, [0], NODES, CREATE_TIMEOUT_S) for client in clients.values()
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            return not any(isinstance(answer, BaseException) for answer in answers)

        try:
            await poll_until(everywhere, 30, what="every node has its copy of the new volume")
        finally:
            await close_all(clients.values())

    def start_nodes(self, node_ids: Iterable[str] = NODES) -> None:
        """Starts nodes side by side and waits until all serve."""
        nodes = [self.nodes[node_id] for node_id in node_ids]
        for node in nodes:
            node.begin()
        for node in nodes:
            node.wait_serving()

    def kill_nodes(self, node_ids: Iterable[str]) -> None:
        """SIGKILL to nodes, at once."""
        nodes = [self.nodes[node_id] for node_id in node_ids]
        for node in nodes:
            node.send_kill()
        for node in nodes:
            node.kill()

    def revive_nodes(self) -> None:
        """Continues what is stopped and starts what is dead."""
        for node in self.nodes.values():
            node.resume()
        self.start_nodes([node_id for node_id, node in self.nodes.items() if not node.alive])

    def power_cut(self) -> None:
        """SIGKILL to every process: nodes, writers, engines."""
        everything = [*self._writers, *self.nodes.values()]
        for process in everything:
            process.send_kill()
        for writer in self._writers:
            _kill_engine(writer)
        for process in everything:
            if process.alive:
                process.kill()

    def connect(self, writer: WriterProcess | None = None, *, timeout_s: int = 10) -> psycopg.Connection:
        """A session of the superuser, in autocommit mode."""
        port = (writer or self.writer).port
        return psycopg.connect(
            host="127.0.0.1",
            port=port,
            user="postgres",
            dbname="postgres",
            password=self.password,
            connect_timeout=timeout_s,
            autocommit=True,
        )

    def close(self) -> None:
        """Ends every process, without ceremony."""
        self.power_cut()
        for writer in self._writers:
            writer.wait_engine_gone()
            forget_run(writer.dirs.run)  # the next start would do this


def _kill_engine(writer: WriterProcess) -> None:
    for pid in writer.engine_processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
