"""aurora-ray the way a user has it: what `aurora up` starts, with the product's defaults, by its cluster endpoint."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Final

from aurora_ray.compute.progress import children_of
from aurora_ray.storage.config import StorageConfig
from benchmarks.data import fill_all
from benchmarks.fleet import UserFleet
from benchmarks.machine import ROOT
from benchmarks.procfs import Component, parent_of, socket_inodes
from benchmarks.systems.base import System, engine_counters, execute, segments_between

STORED_BY: Final = ("storage", "log", "control")
# Processes beside the instance and the storage nodes, by their command lines: actors are children of Ray's raylet.
_ACTORS: Final = {"endpoint": "Endpoint", "control": "Control"}


class Aurora(System):
    """One cluster of a fleet of its own."""

    name = "aurora"
    title = "aurora-ray"

    def start(self) -> None:
        """A new fleet whose tables are loaded through its endpoint; or the one that was kept."""
        directory = self.open_directory()
        self.fleet = UserFleet(directory / "fleet")
        self._cleanup.callback(self.fleet.down if self.site.keep else self.fleet.destroy)
        asked = ["--memory", str(self.site.memory_bytes)] if self.site.memory_bytes else []
        version = ["--engine-version", self.site.version] if self.site.version else []
        self._note(self.fleet.up(*asked, *version))
        if self.parameters:
            words = [f"{name}={value}" for name, value in self.parameters.items()]
            self.fleet.run("parameters", "demo", "set", *words)
            self.fleet.run("failover")
            self._note(self.fleet.status())
        if not self.from_kept_data:
            fill_all(self.dsn, self.site.bin_dir, self.site.data)
            execute(self.dsn, "CHECKPOINT")
        self.data_is_there()

    def _note(self, status: dict[str, Any]) -> None:
        """What is where now."""
        self.status = status
        self.instance = status["instances"][0]
        self.engine_pid = int(self.instance["pid"])
        self.driver_pid = parent_of(self.engine_pid)
        self.node_pids = {node["id"]: int(node["pid"]) for node in status["storage_nodes"]}
        self._others = self._actors()

    def _actors(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for pid in children_of(parent_of(self.driver_pid)):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            found |= {name: pid for name, words in _ACTORS.items() if words in command}
        return found

    def move(self) -> None:
        """A failover that is asked for: the engine starts anew on another mount, which has nothing yet."""
        self.fleet.run("failover", "demo")
        self._note(self.fleet.status())

    def identity(self) -> dict[str, str]:
        """With the code that decides what a fleet stores: another one may store it differently."""
        digest = hashlib.sha256()
        for path in sorted(path for area in STORED_BY for path in (ROOT / "aurora_ray" / area).rglob("*.py")):
            digest.update(path.read_bytes())
        return {**super().identity(), "code": digest.hexdigest()}

    @property
    def dsn(self) -> str:
        """The cluster endpoint's."""
        return str(self.status["endpoints"]["cluster"]["dsn"])

    @property
    def direct_dsn(self) -> str:
        """The engine's own, past the endpoint."""
        return str(self.instance["dsn"])

    def components(self) -> list[Component]:
        """The engine, the instance's process (the driver), the endpoint, the control plane, each storage node."""
        nodes = [Component(f"node {node}", (pid,)) for node, pid in self.node_pids.items()]
        others = [Component(name, (pid,)) for name, pid in self._others.items()]
        engine = Component("engine", (self.engine_pid,), tree=True)
        return [engine, Component("driver", (self.driver_pid,)), *others, *nodes]

    def counters(self) -> dict[str, float]:
        """The engine's, the driver's, and what the driver sends to the nodes.

        Without the engine's calls that write to files: those only fill the local cache, nothing waits for a disk.
        """
        engine = engine_counters(self.dsn, self.site.install.major)
        cached = ("wal_writes", "page_writes")
        kept = {name: value for name, value in engine.items() if name not in cached}
        own, nodes = socket_inodes(self.driver_pid), set[int]()
        for pid in self.node_pids.values():
            nodes |= socket_inodes(pid)
        stats = self.fleet.status()["instances"][0]["stats"]
        return {**kept, **stats, **segments_between(own, nodes)}

    def data_dirs(self) -> list[Path]:
        """The nodes'; the mount is a cache."""
        return [self.fleet.data_dir / "nodes"]

    def settings(self) -> dict[str, Any]:
        """The engine's, the instance's, and the storage's."""
        where = StorageConfig(node_id="", az="", data_dir=Path())
        storage = {
            f"storage.{field.name}": getattr(where, field.name)
            for field in dataclasses.fields(where)
            if field.name not in ("node_id", "az", "data_dir", "host", "port")
        }
        sizes = {f"instance.{name}": self.instance[name] for name in ("memory_bytes", "cpus")}
        return {**super().settings(), **storage, **sizes, "volume.copies": len(self.node_pids)}
