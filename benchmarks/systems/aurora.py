"""aurora-ray: six storage nodes, and a writer with its engine, each a process of its own. No Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any, Final

from aurora_ray.engine.postgres.image import PAGE_BYTES
from aurora_ray.rpc.secret_file import ensure_secret
from aurora_ray.storage.config import StorageConfig
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
from benchmarks.machine import ROOT
from benchmarks.procfs import Component, socket_inodes
from benchmarks.stack import StackConfig
from benchmarks.systems.base import System, engine_counters, segments_between
from benchmarks.systems.server import template

ZONES: Final = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c", "c2": "c"}
STORED_BY: Final = ("storage", "log")
GROUP_BYTES: Final = 10 << 30
_STOP_TIMEOUT_S: Final = 30.0


def spawn(module: str, arguments: list[str], log: Path, **options: Any) -> subprocess.Popen[str]:
    """A Python process of ours that the kernel ends when we end, however we end."""
    command = ["setpriv", "--pdeathsig=KILL", "--", sys.executable, "-m", module, *arguments]
    with log.open("a") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, **options)


def end(child: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL if that is not enough."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


class Writer:
    """The writer's process and the line to it."""

    def __init__(self, config: StackConfig, log: Path) -> None:
        self._log = log
        self._child = spawn("benchmarks.stack", [], log, stdin=subprocess.PIPE)
        started_s = time.perf_counter()
        self.facts = self.ask(config.to_json())
        opening_s = sum(self.facts["stages_s"].values())
        self.facts["process_s"] = round(time.perf_counter() - started_s - opening_s, 4)  # Python's own start

    @property
    def pid(self) -> int:
        """The driver's process."""
        return self._child.pid

    def ask(self, line: str) -> dict[str, Any]:
        """Sends a line, waits for the answer."""
        stdin, stdout = self._pipes()
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            tail = "\n".join(self._log.read_text().splitlines()[-15:])
            raise RuntimeError(f"the writer's process ended; its log ends:\n{tail}")
        values: dict[str, Any] = json.loads(answer)
        return values

    def stop(self) -> dict[str, Any]:
        """Shuts down in order; seconds by stage."""
        answer = self.ask("stop")
        self._child.wait(_STOP_TIMEOUT_S)
        self.close()
        return answer

    def close(self) -> None:
        """Ends the process if it still runs: it follows its standard input, and the engine follows it."""
        with contextlib.suppress(BrokenPipeError, OSError):
            self._pipes()[0].close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_STOP_TIMEOUT_S)
        end(self._child)

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the writer's process was started without pipes")
        return child.stdin, child.stdout


class Aurora(System):
    """Six nodes in three zones, one writer."""

    name = "aurora"
    title = "aurora-ray"

    def start(self) -> None:
        """A new volume, with a copy of the template as its content; or the one that was kept."""
        directory = self._directory = self.open_directory()
        self.nodes = {node: self._spawn_node(node, zone) for node, zone in ZONES.items()}
        self._addresses = [
            NodeAddress(node, ZONES[node], _first_line(child, directory / f"{node}.log"))
            for node, child in self.nodes.items()
        ]
        kept = directory / "volume.json"
        if self.from_kept_data:
            self.volume = VolumeSpec.from_dict(json.loads(kept.read_text()))
        else:
            self.volume = self.new_volume()
            kept.write_text(json.dumps(self.volume.to_dict()))
            self._open(create=False, import_from=template(self.site)).close()
        self.writer = self._open(create=False)
        self._cleanup.callback(self._close_writer)
        self.data_is_there()

    def identity(self) -> dict[str, str]:
        """With the code that decides what storage nodes write: another one may write it differently."""
        digest = hashlib.sha256()
        for path in sorted(path for area in STORED_BY for path in (ROOT / "aurora_ray" / area).rglob("*.py")):
            digest.update(path.read_bytes())
        return {**super().identity(), "code": digest.hexdigest()}

    @property
    def _secret_file(self) -> Path:
        path = self._directory / "secret"
        ensure_secret(path)
        return path

    def _close_writer(self) -> None:
        """The writer of that time, not the first; in order if what it has written is kept."""
        if self.site.keep:
            with contextlib.suppress(RuntimeError, OSError, subprocess.TimeoutExpired):
                self.writer.stop()
        self.writer.close()

    def _spawn_node(self, node: str, zone: str) -> subprocess.Popen[str]:
        data_dir = self._directory / node
        arguments = ["--node-id", node, "--az", zone, "--data-dir", str(data_dir)]
        arguments += ["--secret-file", str(self._secret_file)]
        child = spawn("aurora_ray.storage", arguments, self._directory / f"{node}.log")
        self._cleanup.callback(end, child)
        return child

    def new_volume(self) -> VolumeSpec:
        """The shape of another volume on the same nodes."""
        return VolumeSpec(uuid.uuid4(), PAGE_BYTES, GROUP_BYTES, (GroupPlacement(0, tuple(ZONES)),))

    def _open(self, *, create: bool, import_from: Path | None = None) -> Writer:
        """Another incarnation; the one before must be closed."""
        site = self.site
        root = site.directory(self.name, "instance")
        config = StackConfig(
            volume=self.volume.to_dict(),
            nodes=[dataclasses.asdict(node) for node in self._addresses],
            root=str(root),
            bin_dir=site.bin_dir,
            secret_file=str(self._secret_file),
            images_dir=str(site.image.tree.parent.parent),
            engine_user=site.account.name,
            memory_bytes=4 * site.sizes.shared_buffers_bytes,
            cache_bytes=site.sizes.cache_bytes,
            parameters={"max_connections": str(site.sizes.max_connections), **self.parameters},
            create=create,
            import_from=None if import_from is None else str(import_from),
        )
        return Writer(config, self._directory / "writer.log")

    def reopen(self, volume: VolumeSpec | None = None, *, create: bool = False) -> dict[str, Any]:
        """Ends the writer in order and opens a new one, on `volume` or on the same; what the new one says of that."""
        self.writer.stop()
        if volume is not None:
            self.volume = volume
        self.writer = self._open(create=create)
        return self.writer.facts

    @property
    def dsn(self) -> str:
        """The engine's own."""
        return str(self.writer.facts["dsn"])

    def components(self) -> list[Component]:
        """The engine, the driver that sends its redo, and each storage node."""
        nodes = [Component(f"node {node}", (child.pid,)) for node, child in self.nodes.items()]
        engine = Component("engine", (int(self.writer.facts["engine_pid"]),), tree=True)
        return [engine, Component("driver", (self.writer.pid,)), *nodes]

    def counters(self) -> dict[str, float]:
        """The engine's, the driver's, and what the driver sends to the nodes.

        Without the engine's calls that write to files: those only fill the local cache, nothing waits for a disk.
        """
        engine = engine_counters(self.dsn, self.site.install.major)
        cached = ("wal_writes", "page_writes")
        kept = {name: value for name, value in engine.items() if name not in cached}
        own, nodes = socket_inodes(self.writer.pid), set[int]()
        for child in self.nodes.values():
            nodes |= socket_inodes(child.pid)
        return {**kept, **self.writer.ask("stats"), **segments_between(own, nodes)}

    def data_dirs(self) -> list[Path]:
        """The nodes'; the mount is a cache."""
        return [self._directory / node for node in self.nodes]

    def settings(self) -> dict[str, Any]:
        """The engine's, and the storage's."""
        where = StorageConfig(node_id="", az="", data_dir=Path())
        storage = {
            f"storage.{field.name}": getattr(where, field.name)
            for field in dataclasses.fields(where)
            if field.name not in ("node_id", "az", "data_dir", "host", "port")
        }
        return {
            **super().settings(),
            **storage,
            "mount.cache_bytes": self.site.sizes.cache_bytes,
            "volume.group_bytes": GROUP_BYTES,
            "volume.copies": len(ZONES),
        }


def _first_line(child: subprocess.Popen[str], log: Path) -> str:
    line = child.stdout.readline().strip() if child.stdout is not None else ""
    if not line:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"a storage node did not start; its log ends:\n{tail}")
    return line
