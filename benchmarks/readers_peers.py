"""A writer with readers: a fleet of aurora-ray, and stock PostgreSQL with as many streaming hot standbys.

Both have readers added and taken away while they run, and say where sessions that read are to go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import psycopg

from benchmarks.fleet import UserFleet
from benchmarks.procfs import Component, parent_of
from benchmarks.systems.base import Site, fill, query
from benchmarks.systems.server import Server, copy_tree, template

if TYPE_CHECKING:
    from pathlib import Path

ADD_TIMEOUT_S: Final = 300.0
SERVES_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.01


class Peer(ABC):
    """Entered, measured, left; then nothing of it remains. `fill` puts pgbench's tables into it."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, site: Site) -> None:
        self.site = site
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @abstractmethod
    def start(self) -> None:
        """Without readers and without data."""

    @property
    @abstractmethod
    def dsn(self) -> str:
        """Where clients write."""

    @property
    @abstractmethod
    def reading_dsn(self) -> str:
        """Where clients read, whatever the number of readers: the reader endpoint, or all of them in a row."""

    @abstractmethod
    def readers(self) -> list[str]:
        """The DSN of each reader."""

    @abstractmethod
    def add(self, count: int) -> None:
        """So many readers more, that serve."""

    @abstractmethod
    def remove(self, count: int) -> None:
        """So many readers fewer."""

    @abstractmethod
    def writers(self) -> Component:
        """The writer's own processes."""

    def set_readers(self, count: int) -> None:
        """Adds, or removes, until there are so many."""
        there = len(self.readers())
        if there < count:
            self.add(count - there)
        elif there > count:
            self.remove(there - count)

    def timed_add(self) -> float:
        """Seconds from the wish to the first row that a new reader gives; it is taken away again."""
        before = set(self.readers())
        began_s = time.monotonic()
        self.add(1)
        (added,) = set(self.readers()) - before
        until_serves(added)
        took_s = time.monotonic() - began_s
        self.remove(1)
        return round(took_s, 3)

    def fill(self, scale: int) -> None:
        """pgbench's tables, anew."""
        fill(self.dsn, self.site.bin_dir, scale)

    def database_bytes(self) -> int:
        """What the database occupies once."""
        return int(query(self.dsn, "SELECT sum(pg_database_size(oid)) FROM pg_database")[0][0])


class FleetPeer(Peer):
    """What `aurora up` starts, and its endpoints."""

    name = "aurora"
    title = "aurora-ray"

    def start(self) -> None:
        """A fleet of its own."""
        self.fleet = UserFleet(self.site.directory("aurora") / "fleet", {"AURORA_CHAOS": "1"})
        self._cleanup.callback(self.fleet.destroy)
        asked = ["--memory", str(self.site.memory_bytes)] if self.site.memory_bytes else []
        self.status = self.fleet.up(*asked)

    def refresh(self) -> dict[str, Any]:
        """Its status, looked at anew."""
        self.status = self.fleet.status()
        return self.status

    @property
    def dsn(self) -> str:
        """The cluster endpoint's, which stays."""
        return str(self.status["endpoints"]["cluster"]["dsn"])

    @property
    def reading_dsn(self) -> str:
        """The reader endpoint's."""
        return str(self.status["endpoints"]["reader"]["dsn"])

    def readers(self) -> list[str]:
        """Each one's own address."""
        return [str(each["dsn"]) for each in self._of("reader")]

    def _of(self, role: str) -> list[dict[str, Any]]:
        return [each for each in self.status["instances"] if each["role"] == role]

    def add(self, count: int) -> None:
        """By the command, which returns when they serve."""
        memory = ["--memory", str(self.site.memory_bytes)] if self.site.memory_bytes else []
        self.fleet.run("add-reader", "demo", "--count", str(count), *memory, timeout_s=ADD_TIMEOUT_S)
        self.refresh()

    def remove(self, count: int) -> None:
        """The newest first."""
        for each in self._of("reader")[::-1][:count]:
            self.fleet.run("remove-reader", each["id"])
        self.refresh()

    def writers(self) -> Component:
        """The engine with its sessions, and the process that drives it, its parent."""
        (writer,) = self._of("writer")
        return Component("writer", (parent_of(int(writer["pid"])),), tree=True)

    def lose_writer(self, kind: str) -> None:
        """Kills the writer's engine and its driver, or has another instance be the writer."""
        if kind == "planned":
            self.fleet.run("failover", "demo", timeout_s=SERVES_TIMEOUT_S)
            return
        (writer,) = self._of("writer")
        for pid in (parent_of(int(writer["pid"])), int(writer["pid"])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def heal(self) -> None:
        """Until everything that is declared serves again."""
        deadline_s = time.monotonic() + SERVES_TIMEOUT_S
        while any(each["state"] != "available" for each in self.refresh()["instances"]):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"not all instances came back: {self.status['instances']}")
            time.sleep(0.2)


class StandbyPeer(Peer):
    """A primary and hot standbys made by pg_basebackup that stream from it, asynchronously."""

    name = "stock"
    title = "stock, streaming standbys"

    def start(self) -> None:
        """A primary on the local disk."""
        self._directory = self.site.directory("stock")
        copy_tree(template(self.site), self._directory / "primary")
        self.primary = Server(self.site, self._directory / "primary", {"wal_keep_size": "2GB"})
        self._standbys: list[Server] = []
        self._number = 0
        self._cleanup.callback(self._stop)
        self.primary.start()

    def _stop(self) -> None:
        for server in (*self._standbys, self.primary):
            server.stop(signal.SIGQUIT)

    @property
    def dsn(self) -> str:
        """The primary's."""
        return self.primary.dsn

    @property
    def source_port(self) -> int:
        """Where standbys find the primary."""
        return self.primary.port

    @property
    def reading_dsn(self) -> str:
        """All standbys, of which libpq takes one at random."""
        hosts = ",".join(f"127.0.0.1:{standby.port}" for standby in self._standbys) or f"127.0.0.1:{self.primary.port}"
        return f"postgresql://postgres@{hosts}/postgres?load_balance_hosts=random"

    def readers(self) -> list[str]:
        """Each one's own."""
        return [standby.dsn for standby in self._standbys]

    def add(self, count: int) -> None:
        """A copy of the primary each."""
        source = f"host=127.0.0.1 port={self.primary.port} user=postgres"
        options = ["-d", source, "--wal-method=stream", "--checkpoint=fast", "--no-manifest", "--no-sync"]
        for _ in range(count):
            self._number += 1
            directory = self._directory / f"s{self._number}"
            directory.mkdir()
            self.site.account.own(directory, 0o700)
            command = [f"{self.site.bin_dir}/pg_basebackup", "-D", str(directory), *options]
            subprocess.run(self.site.account.command(command), check=True, cwd="/", timeout=ADD_TIMEOUT_S)
            self._standbys.append(self._follow(directory))

    def _follow(self, directory: Path) -> Server:
        signal_file = directory / "standby.signal"
        signal_file.touch()
        self.site.account.own(signal_file, 0o600)
        follow = f"host=127.0.0.1 port={self.source_port} user=postgres application_name={directory.name}"
        standby = Server(self.site, directory, {"primary_conninfo": follow, "hot_standby_feedback": "on"})
        standby.start()
        until_serves(standby.dsn)
        return standby

    def remove(self, count: int) -> None:
        """The newest first, with their data."""
        for standby in self._standbys[::-1][:count]:
            standby.stop(signal.SIGQUIT)
            shutil.rmtree(standby.data_dir, ignore_errors=True)
            self._standbys.remove(standby)

    def writers(self) -> Component:
        """The primary with its sessions and senders of WAL."""
        return Component("writer", (self.primary.pid,), tree=True)


def until_serves(dsn: str) -> None:
    """Waits until a session gives a row. Raises RuntimeError."""
    deadline_s = time.monotonic() + SERVES_TIMEOUT_S
    while True:
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as session:
                session.execute("SELECT count(*) FROM pg_class").fetchone()
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline_s:
                raise RuntimeError("a reader does not serve") from None
            time.sleep(_POLL_S)


PEERS: Final[Mapping[str, type[Peer]]] = {peer.name: peer for peer in (FleetPeer, StandbyPeer)}
