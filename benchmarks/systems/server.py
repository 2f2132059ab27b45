"""A stock PostgreSQL server of the same binary: started on a data directory, ended, nothing else."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aurora_ray.engine.account import BASE_ENVIRONMENT
from aurora_ray.engine.network import claim_port
from aurora_ray.engine.postgres.shared_memory import remove_segments
from aurora_ray.engine.postgres.sizes import size_settings
from aurora_ray.engine.process import processes_in
from benchmarks.data import fill_all
from benchmarks.systems.base import Site
from benchmarks.workloads import Checkpoint

_START_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 120.0
_QUIT_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02
_STATUS_LINE: Final = 7  # of postmaster.pid, from 0
_HBA: Final = "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"

# What a careful administrator sets for this load. What has to do with checkpoints is in a file: it changes
# between workloads, and what is on the command line could not.
SETTINGS: Final[Mapping[str, str]] = {
    "wal_sync_method": "fdatasync",
    "full_page_writes": "on",
    # The binary has neither lz4 nor zstd, and pglz takes some 0.1 ms of CPU for each image of a page: more than writing
    # the 8 KiB does (TPC-B from a checkpoint on, two cores: a sixth fewer transactions with it).
    "wal_compression": "off",
    "wal_level": "replica",
    "wal_buffers": "16MB",
    "checkpoint_completion_target": "0.9",
    "huge_pages": "try",
    "jit": "off",
    "wal_sender_timeout": "0",
    "wal_receiver_timeout": "0",
    "max_wal_senders": "16",
    "wal_keep_size": "256MB",
    "min_wal_size": "512MB",  # old segments are used again instead of new ones being filled with zeros
}
# PostgreSQL's own interval, with room for the WAL of that long; or none for as long as anybody measures.
_CHECKPOINTS: Final = {
    Checkpoint.JUST_BEFORE: {"checkpoint_timeout": "5min", "max_wal_size": "8GB"},
    Checkpoint.LONG_AGO: {"checkpoint_timeout": "1d", "max_wal_size": "64GB"},
}
# For making the data: what is written into a new table in the transaction that made it needs no WAL at all.
_LOADING: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "64GB",
    "maintenance_work_mem": "512MB",
    "autovacuum": "off",
}
_CHECKPOINTS_FILE: Final = "checkpoints.conf"
_INCLUDE: Final = f"\ninclude_if_exists = '{_CHECKPOINTS_FILE}'\n"


class Server:
    """One server on `data_dir`, of the size that an instance of aurora-ray has."""

    def __init__(self, site: Site, data_dir: Path, parameters: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        self.port = 0
        self._site = site
        sized = size_settings(site.size, major=site.install.major)
        del sized["max_wal_size"]  # what has to do with checkpoints is below, and better for these short runs
        self._parameters = {**sized, **SETTINGS, **parameters}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return self._running().pid

    @property
    def dsn(self) -> str:
        """For a superuser, without a password: it listens on loopback only."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Returns when it is ready, or follows a primary. Belongs into the main thread: it ends with its thread."""
        self.port = claim_port("127.0.0.1", 0)
        configuration = self.data_dir / "postgresql.conf"
        if _INCLUDE not in configuration.read_text():
            with configuration.open("a") as file:
                file.write(_INCLUDE)
        self._write_checkpoints(Checkpoint.JUST_BEFORE)
        hba = self.data_dir.parent / "hba.conf"
        hba.write_text(_HBA)
        fixed = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "hba_file": str(hba),
        }
        options = [word for item in {**self._parameters, **fixed}.items() for word in ("-c", "=".join(item))]
        command = [f"{self._site.bin_dir}/postgres", "-D", str(self.data_dir), *options]
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        with self.data_dir.with_suffix(".log").open("ab") as log:
            self._child = subprocess.Popen(
                self._site.account.command(command, death_signal="QUIT"),
                env=dict(BASE_ENVIRONMENT),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        self._wait_ready()

    def set_checkpoints(self, checkpoint: Checkpoint) -> None:
        """When checkpoints come by themselves from now on: as usual, or so rarely that the last one stays long ago."""
        self._write_checkpoints(checkpoint)
        self._running().send_signal(signal.SIGHUP)

    def _write_checkpoints(self, checkpoint: Checkpoint) -> None:
        lines = [f"{name} = '{value}'\n" for name, value in _CHECKPOINTS[checkpoint].items()]
        (self.data_dir / _CHECKPOINTS_FILE).write_text("".join(lines))

    def stop(self, signo: signal.Signals = signal.SIGINT) -> None:
        """SIGINT shuts it down in order, SIGQUIT at once. Rougher if it does not obey in time."""
        child, self._child = self._child, None
        if child is None:
            return
        for each, limit_s in ((signo, _STOP_TIMEOUT_S), (signal.SIGQUIT, _QUIT_TIMEOUT_S), (signal.SIGKILL, 10.0)):
            child.send_signal(each)
            with contextlib.suppress(subprocess.TimeoutExpired):
                if child.wait(limit_s) < 0:
                    self._remove_memory(child.pid)
                return

    def _remove_memory(self, main_pid: int) -> None:
        """What a killed server leaves in the kernel: it is not started again where it would find it."""
        deadline_s = time.monotonic() + _QUIT_TIMEOUT_S
        while processes_in(self.data_dir, "postgres") and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        remove_segments(main_pid)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise RuntimeError(f"no server runs on {self.data_dir}")
        return self._child

    def _wait_ready(self) -> None:
        child = self._running()
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        descriptor = os.pidfd_open(child.pid)
        try:
            while time.monotonic() < deadline_s:
                ended, _, _ = select.select([descriptor], [], [], _POLL_S)
                if ended:
                    break
                with contextlib.suppress(FileNotFoundError):
                    lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
                    if len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() in ("ready", "standby"):
                        return
        finally:
            os.close(descriptor)
        self.stop(signal.SIGKILL)
        raise RuntimeError(f"PostgreSQL did not start; see the end of its log:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.data_dir.with_suffix(".log").read_text(errors="replace").splitlines()[-12:])


def rare_checkpoints() -> dict[str, str]:
    """What differs from a server's settings in workloads whose last checkpoint is to be long ago, for the record."""
    when = "while no checkpoint is to come"
    return {f"{name}, {when}": value for name, value in _CHECKPOINTS[Checkpoint.LONG_AGO].items()}


def copy_tree(source: Path, target: Path) -> None:
    """A copy with owners and modes, sharing blocks where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.parent.chmod(0o755)
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True, timeout=600)


def template(site: Site) -> Path:
    """A data directory, shut down in order, with the site's data; made once for all systems."""
    target = site.directory("template") / site.data.name
    if target.exists():
        return target
    building = target.with_name(f"{target.name}-building")
    shutil.rmtree(building, ignore_errors=True)
    copy_tree(site.image.tree, building)
    if site.data.nbytes > 0:
        server = Server(site, building, _LOADING)
        try:
            server.start()
            fill_all(server.dsn, site.bin_dir, site.data)
        finally:
            server.stop()
        _tidy(site, building)
    building.rename(target)
    return target


def _tidy(site: Site, data_dir: Path) -> None:
    """Without what a server makes anew, our settings, and the WAL of the load: one new, nearly empty segment."""
    command = [f"{site.bin_dir}/pg_resetwal", "-f", "-D", str(data_dir)]
    subprocess.run(site.account.command(command), check=True, timeout=60, cwd="/", stdout=subprocess.DEVNULL)
    configuration = data_dir / "postgresql.conf"
    configuration.write_text(configuration.read_text().replace(_INCLUDE, ""))
    for pattern in ("**/pg_internal.init*", "postmaster.*", _CHECKPOINTS_FILE):
        for path in data_dir.glob(pattern):
            path.unlink()
