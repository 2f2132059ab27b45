"""Whose writer is lost on purpose: a fleet of aurora-ray, and stock PostgreSQL with a synchronous standby.

Each is told to lose its writer, says afterwards where the time went, and mends itself for the next time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from aurora_ray.compute.health import HealthRules
from aurora_ray.compute.signals import family
from aurora_ray.telemetry.spanreader import read_traces
from aurora_ray.telemetry.waterfall import FAILOVER, collapsed, covered_ms, summarise, waterfall
from benchmarks.failover_stages import OURS, STOCK, exclusive
from benchmarks.failover_watchdog import Takeover, Watchdog
from benchmarks.fleet import UP_TIMEOUT_S, UserFleet
from benchmarks.procfs import Component, parent_of
from benchmarks.systems.base import Site, execute, fill, query
from benchmarks.systems.server import Server, copy_tree, template

HEAL_TIMEOUT_S: Final = 90.0
TRACE_TIMEOUT_S: Final = 45.0
_POLL_S: Final = 0.1

ASKED: Final = "asked"
KINDS: Final[Mapping[str, str]] = {
    "kill": "kill -9 of all processes of the writer",
    "stop": "SIGSTOP of all processes of the writer",
    "engine": "kill -9 of the engine's main process",
    ASKED: "a failover that is asked for, in order",
}


@dataclass(frozen=True, slots=True)
class Account:
    """Where the time of a failover went, in seconds. `stages_s` follow each other; `total_s` is what was traced."""

    total_s: float
    covered_s: float
    stages_s: dict[str, float]
    trace_id: str = ""
    rows: list[list[Any]] = field(default_factory=list)  # of the waterfall: depth, name (null: a gap), offset, duration


class Peer(ABC):
    """Entered, struck, explained and healed in turns, left; then nothing of it remains."""

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
        """With pgbench's tables at the site's scale."""

    @property
    @abstractmethod
    def dsn(self) -> str:
        """What clients use before, during and after a failover."""

    @abstractmethod
    def victims(self, kind: str) -> list[int]:
        """Process ids to be signalled, all at once."""

    def takes(self, kind: str) -> bool:
        """Whether there is such a fault with this database."""
        return kind != ASKED

    def strike(self, kind: str) -> Callable[[], None]:
        """What makes the fault happen, with all that takes time looked up before."""
        victims, signo = self.victims(kind), signal_of(kind)

        def signals() -> None:
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):  # its parent's end took it along
                    os.kill(pid, signo)

        return signals

    @abstractmethod
    def explain(self, fault_s: float, first_write_s: float) -> Account | None:
        """Where the time of the failover after a fault went; None if nothing tells."""

    @abstractmethod
    def heal(self) -> None:
        """Returns when it is as it was before the fault."""


def signal_of(kind: str) -> signal.Signals:
    """What the victims of a fault of this kind get."""
    return signal.SIGSTOP if kind == "stop" else signal.SIGKILL


class AuroraPeer(Peer):
    """Ray, six storage nodes, a writer, its endpoint: what `aurora up` starts."""

    name = "aurora"
    title = "aurora-ray"
    _asked: ClassVar[tuple[str, ...]] = ()  # of `aurora up`

    def __init__(self, site: Site, *, label: str = "fleet", environment: Mapping[str, str] | None = None) -> None:
        super().__init__(site)
        self.label = label
        self._environment = dict(environment or {})

    def start(self) -> None:
        """A new fleet in the site's directory."""
        self._data_dir = self.site.directory(self.label)
        self._cleanup.callback(shutil.rmtree, self._data_dir, ignore_errors=True)
        self.fleet = UserFleet(self._data_dir, self._environment)
        self._cleanup.callback(self.fleet.destroy)
        status = self.fleet.up(*self._asked)
        self._dsn = str(status["endpoints"]["cluster"]["dsn"])
        fill(self._dsn, self.site.bin_dir, self.site.scale)
        execute(self._dsn, "CHECKPOINT")  # what filled the tables is not replayed, as with the other one
        self._note(status)

    @property
    def dsn(self) -> str:
        """The cluster endpoint."""
        return self._dsn

    @property
    def telemetry_dir(self) -> Path:
        """Where its processes keep their spans."""
        return self._data_dir / "telemetry"

    def components(self) -> list[Component]:
        """The writer's process with its engine, and each storage node."""
        nodes = self.fleet.status()["storage_nodes"]
        writer = Component("writer", (parent_of(self._engine),), tree=True)
        return [writer, *(Component(f"node {node['id']}", (int(node["pid"]),)) for node in nodes)]

    def victims(self, kind: str) -> list[int]:
        """The engine's process is what `aurora status` shows; the writer's is its parent."""
        return [self._engine] if kind == "engine" else family(parent_of(self._engine))

    def takes(self, kind: str) -> bool:
        """All of them."""
        return kind in KINDS

    def strike(self, kind: str) -> Callable[[], None]:
        """A failover that is asked for goes by the command, and has ended when that has."""
        if kind != ASKED:
            return super().strike(kind)

        def asks() -> None:
            self.fleet.run("failover", timeout_s=HEAL_TIMEOUT_S)

        return asks

    def explain(self, fault_s: float, first_write_s: float) -> Account | None:  # noqa: ARG002  (it knows better)
        """From the trace; it is written a moment after the failover has ended."""
        deadline_s = time.monotonic() + TRACE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for spans in reversed(read_traces(self.telemetry_dir).values()):
                summary = summarise(spans)
                if summary.name != FAILOVER or summary.start_ns / 1e9 + summary.duration_ms / 1e3 < fault_s:
                    continue
                root = next((span for span in spans if not span.parent_id), None)
                if root is None:
                    continue
                rows = [
                    [row.depth, row.span.name if row.span else None, round(row.offset_ms, 1), round(row.duration_ms, 1)]
                    for row in waterfall(collapsed(spans))
                ]
                intervals = [(span.name, span.start_ns, span.end_ns) for span in spans]
                stages = exclusive(intervals, OURS, root.start_ns, root.end_ns)
                covered_s = covered_ms(spans, root) / 1e3
                return Account(summary.duration_ms / 1e3, covered_s, stages, summary.trace_id, rows)
            time.sleep(_POLL_S)
        return None

    def heal(self) -> None:
        """It does so by itself."""
        deadline_s = time.monotonic() + HEAL_TIMEOUT_S
        while time.monotonic() < deadline_s:
            status = self.fleet.status()
            nodes = {node["state"] for node in status["storage_nodes"]}
            others = {instance["state"] for instance in status["instances"]}
            whole = status["state"] == "available" and others == {"available"} and nodes == {"healthy"}
            if whole and int(status["epoch"]) > self._epoch:
                self._note(status)
                return
        raise TimeoutError(f"the fleet was not whole again within {HEAL_TIMEOUT_S:g} s: {status}")

    def _note(self, status: dict[str, Any]) -> None:
        writer = next(instance for instance in status["instances"] if instance["role"] == "writer")
        self._epoch, self._engine = int(status["epoch"]), int(writer["pid"])


class ReaderPeer(AuroraPeer):
    """The same with a reader beside the writer."""

    name = "reader"
    title = "aurora-ray with a reader"
    _asked = ("--readers", "1")

    def __init__(self, site: Site) -> None:
        super().__init__(site, label="fleet-with-a-reader")


class StockPeer(Peer):
    """A primary, a synchronous hot standby, a watchdog that promotes it; clients name both in their DSN."""

    name = "stock"
    title = "stock, synchronous standby"
    _settings: ClassVar[Mapping[str, str]] = {"hot_standby": "on", "wal_keep_size": "256MB", "max_wal_size": "1GB"}

    def start(self) -> None:
        """From a copy of the template."""
        directory = self.site.directory(self.name)
        self._cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        self._directories = [directory / "one", directory / "two"]
        copy_tree(template(self.site), self._directories[0])
        self._primary = self._server(self._directories[0], {})
        self._cleanup.callback(self._end_all)
        self._standby: Server | None = None
        self._watchdog: Watchdog | None = None
        self._primary.start()
        self._add_standby(self._directories[1])

    @property
    def dsn(self) -> str:
        """libpq's own way: both addresses, and the one that takes writes is wanted."""
        ports = (self._primary.port, self._both()[1].port)
        hosts = ",".join(f"127.0.0.1:{port}" for port in sorted(ports))
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def victims(self, kind: str) -> list[int]:
        """Of the primary."""
        return [self._primary.pid] if kind == "engine" else family(self._primary.pid)

    def explain(self, fault_s: float, first_write_s: float) -> Account | None:
        """From what the watchdog noted."""
        done = self._watchdog.takeover if self._watchdog is not None else Takeover()
        if not done.promoted_ns:
            return None
        ends = (done.good_at_ns, done.noticed_ns, done.fenced_ns, done.promoted_ns, round(first_write_s * 1e9))
        intervals = [(name, ends[at], ends[at + 1]) for at, name in enumerate(STOCK)]
        begun_ns, ended_ns = min(round(fault_s * 1e9), ends[0]), ends[-1]
        stages = exclusive(intervals, {name: name for name in STOCK}, begun_ns, ended_ns)
        total_s = (ended_ns - begun_ns) / 1e9
        return Account(total_s, total_s - stages.get("not traced", 0.0), stages)

    def heal(self) -> None:
        """The promoted one is the primary; the other one is made anew as its standby."""
        old, promoted = self._both()
        self._end_watchdog()
        old.stop(signal.SIGKILL)
        self._primary, self._standby = promoted, None
        shutil.rmtree(old.data_dir)
        self._add_standby(old.data_dir)

    def _both(self) -> tuple[Server, Server]:
        if self._standby is None:
            raise RuntimeError("there is no standby")
        return self._primary, self._standby

    def _server(self, data_dir: Path, parameters: Mapping[str, str]) -> Server:
        return Server(self.site, data_dir, {**self._settings, **parameters})

    def _add_standby(self, data_dir: Path) -> None:
        """A copy of the primary that follows it, and without which it acknowledges nothing; then the watchdog."""
        account = self.site.account
        data_dir.mkdir()
        account.own(data_dir, 0o700)
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        options = ["-d", source, "--wal-method=stream", "--checkpoint=fast", "--no-manifest", "--no-sync"]
        command = [f"{self.site.bin_dir}/pg_basebackup", "-D", str(data_dir), *options]
        subprocess.run(account.command(command), cwd="/", check=True, timeout=UP_TIMEOUT_S)
        (data_dir / "standby.signal").touch()
        account.own(data_dir / "standby.signal", 0o600)
        self._standby = self._server(data_dir, {"primary_conninfo": f"{source} application_name=standby"})
        self._standby.start()
        primary = self._primary.dsn
        execute(primary, "ALTER SYSTEM SET synchronous_standby_names = 'standby'; SELECT pg_reload_conf()")
        synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        _wait(lambda: query(primary, synchronous)[0][0] == 1, "the standby is synchronous")
        self._watchdog = Watchdog(
            primary_dsn=primary,
            primary_pid=self._primary.pid,
            standby_dsn=self._standby.dsn,
            rules=HealthRules(),
        )
        self._watchdog.__enter__()

    def _end_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.__exit__()

    def _end_all(self) -> None:
        self._end_watchdog()
        for server in (self._primary, self._standby):
            if server is not None:
                with contextlib.suppress(Exception):
                    for pid in family(server.pid):
                        os.kill(pid, signal.SIGCONT)
                server.stop(signal.SIGQUIT)


PEERS: Final[Mapping[str, type[Peer]]] = {peer.name: peer for peer in (AuroraPeer, ReaderPeer, StockPeer)}


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + HEAL_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {HEAL_TIMEOUT_S:g} s in vain: {what}")
        time.sleep(_POLL_S)
