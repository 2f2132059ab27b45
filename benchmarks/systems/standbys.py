"""Stock PostgreSQL with six synchronous standbys, of which any four must have a commit on disk: our durability."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.procfs import Component
from benchmarks.systems.base import (
    System,
    engine_counters,
    execute,
    query,
    segments_out,
    touch_pages,
)
from benchmarks.systems.server import Server, copy_tree, rare_checkpoints, template
from benchmarks.workloads import Checkpoint

STANDBYS: Final = 6
REQUIRED: Final = 4
# What is sent six times and written seven times is better small and not too often: images of pages compressed, and more
# commits in each flush: on two cores, each of both gives it more transactions a second.
SENDING: Final = {"wal_compression": "pglz", "commit_delay": "1000", "commit_siblings": "5"}
# Nobody reads from the standbys here: what hot_standby would cost is saved.
FOLLOWING: Final = {"hot_standby": "off"}
_BACKUP_TIMEOUT_S: Final = 900.0
_STREAMING_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.05


class Standbys(System):
    """A primary and six standbys made by pg_basebackup, streaming over loopback."""

    name = "standbys"
    writes_images = True
    title = f"stock, ANY {REQUIRED} of {STANDBYS} standbys"

    def start(self) -> None:
        """From a copy of the template; copies are taken two at a time."""
        site = self.site
        self._directory = self.open_directory()
        if not self.from_kept_data:
            copy_tree(template(site), self._directory / "primary")
        self.primary = Server(site, self._directory / "primary", {**SENDING, **self.parameters})
        self._cleanup.callback(lambda: self.primary.stop(self._end_signal))
        self.primary.start()
        names = [f"s{number}" for number in range(1, STANDBYS + 1)]
        if not self.from_kept_data:
            self._prepare(names)
            for pair in zip(names[::2], names[1::2], strict=True):
                self._back_up(pair)
        self.standbys = [self._standby(name) for name in names]
        for standby in self.standbys:
            self._cleanup.callback(standby.stop, self._end_signal)
            standby.start()
        self._wait_streaming()
        execute(
            self.dsn,
            f"ALTER SYSTEM SET synchronous_standby_names = 'ANY {REQUIRED} ({', '.join(names)})'; "
            "SELECT pg_reload_conf()",
        )
        self.data_is_there()

    @property
    def _end_signal(self) -> signal.Signals:
        return signal.SIGINT if self.site.keep else signal.SIGQUIT

    def _prepare(self, names: list[str]) -> None:
        for name in names:
            directory = self._directory / name
            directory.mkdir()
            self.site.account.own(directory, 0o700)

    def _back_up(self, names: tuple[str, ...]) -> None:
        source = f"host=127.0.0.1 port={self.primary.port} user=postgres"
        options = ["-d", source, "--wal-method=stream", "--checkpoint=fast", "--no-manifest", "--no-sync"]
        children = []
        for name in names:
            command = [f"{self.site.bin_dir}/pg_basebackup", "-D", str(self._directory / name), *options]
            children.append(subprocess.Popen(self.site.account.command(command), cwd="/"))
        for child in children:
            if child.wait(_BACKUP_TIMEOUT_S) != 0:
                raise RuntimeError(f"pg_basebackup ended with {child.returncode}")

    def _standby(self, name: str) -> Server:
        data_dir = self._directory / name
        signal_file = data_dir / "standby.signal"
        signal_file.touch()
        self.site.account.own(signal_file, 0o600)
        follow = f"host=127.0.0.1 port={self.primary.port} user=postgres application_name={name}"
        parameters = {"primary_conninfo": follow, **FOLLOWING}
        return Server(self.site, data_dir, parameters)

    def _wait_streaming(self) -> None:
        deadline_s = time.monotonic() + _STREAMING_TIMEOUT_S
        while time.monotonic() < deadline_s:
            rows = query(self.dsn, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
            if rows[0][0] == STANDBYS:
                return
            time.sleep(_POLL_S)
        raise RuntimeError(
            f"not all of the {STANDBYS} standbys follow the primary; their logs are in {self._directory}"
        )

    def begin(self, checkpoint: Checkpoint) -> None:
        """Long ago: no checkpoint from now on, and the images since the last one are written."""
        for server in (self.primary, *self.standbys):
            server.set_checkpoints(checkpoint)
        if checkpoint == Checkpoint.LONG_AGO:
            touch_pages(self.dsn)

    @property
    def dsn(self) -> str:
        """The primary's."""
        return self.primary.dsn

    def components(self) -> list[Component]:
        """The primary with its six senders, and each standby."""
        standbys = [
            Component(f"standby {number}", (standby.pid,), tree=True)
            for number, standby in enumerate(self.standbys, start=1)
        ]
        return [Component("engine", (self.primary.pid,), tree=True), *standbys]

    def counters(self) -> dict[str, float]:
        """The primary's own, and what it sends to its standbys."""
        ports = {row[0] for row in query(self.dsn, "SELECT client_port FROM pg_stat_replication")}
        sent = segments_out(lambda each: each.local == self.primary.port and each.remote in ports)
        return {**engine_counters(self.dsn, self.site.install.major), **sent}

    def settings(self) -> dict[str, Any]:
        """The primary's, with those of workloads before which there was no checkpoint for long, and the standbys'."""
        standbys = {f"standbys: {name}": value for name, value in FOLLOWING.items()}
        return {**super().settings(), **rare_checkpoints(), **standbys}

    def data_dirs(self) -> list[Path]:
        """All seven."""
        return [self.primary.data_dir, *(standby.data_dir for standby in self.standbys)]
