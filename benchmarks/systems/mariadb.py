"""Stock MariaDB of the same binary on a local disk: one alone, or a primary with semi-synchronous replicas."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT, EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.mariadb.connection import connect
from aurora_ray.engine.mariadb.credentials import write_passfile
from aurora_ray.engine.mariadb.install import SERVER
from aurora_ray.engine.mariadb.sizes import size_settings
from aurora_ray.engine.network import claim_port
from aurora_ray.engine.sizes import InstanceSize
from benchmarks.systems.server import copy_tree

REPLICAS: Final = 5
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 60.0
_USER: Final = "bench"
# As MariaDB has it by itself where it loses nothing: each commit synced, pages written twice.
SETTINGS: Final = {
    "innodb_page_size": "16384",
    "innodb_log_file_size": "96M",
    "innodb_flush_log_at_trx_commit": "1",
    "sync_binlog": "1",
    "innodb_doublewrite": "ON",
    "skip_name_resolve": "ON",
    "performance_schema": "OFF",
}
LOGGED: Final = {"log_bin": "binlog", "binlog_format": "ROW", "gtid_strict_mode": "ON"}
# The primary tells a commit when one of them has its events on disk: the only number that it knows to wait for.
PRIMARY: Final = {"rpl_semi_sync_master_enabled": "ON", "rpl_semi_sync_master_wait_point": "AFTER_SYNC"}
REPLICA: Final = {
    "rpl_semi_sync_slave_enabled": "ON",
    "sync_relay_log": "1",
    "read_only": "ON",
    "log_slave_updates": "ON",
}


class StockMariadb:
    """One server on a copy of a prepared data directory."""

    def __init__(self, install: EngineInstall, account: EngineAccount, directory: Path, size: InstanceSize) -> None:
        self._install, self._account, self._directory, self._size = install, account, directory, size
        self._passfile = directory.with_suffix(".cnf")
        self._password = secrets.token_urlsafe(16)
        self._child: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def dsn(self) -> str:
        """For an account that may do everything, over loopback."""
        return f"--defaults-file={self._passfile} --host=127.0.0.1 --port={self.port}"

    def start(self, tree: Path, settings: dict[str, str], *, server_id: int) -> None:
        """On a copy of `tree`. Raises RuntimeError if it does not come."""
        copy_tree(tree, self._directory)
        write_passfile(self._passfile, _USER, self._password)
        self.port = claim_port("127.0.0.1", 0)
        script = self._directory / "init.sql"
        script.write_text(
            "SET SESSION sql_log_bin = 0;\n"
            f"CREATE OR REPLACE USER '{_USER}'@'%' IDENTIFIED BY '{self._password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{_USER}'@'%' WITH GRANT OPTION;\n"
        )
        self._account.own(script, 0o600)
        fixed = {
            "basedir": str(self._install.bin_dir.parent),
            "datadir": str(self._directory),
            "socket": str(self._directory / "s"),
            "pid_file": str(self._directory / "pid"),
            "bind_address": "127.0.0.1",
            "port": str(self.port),
            "server_id": str(server_id),
            "init_file": str(script),
        }
        options = {**size_settings(self._size), **SETTINGS, **settings, **fixed}
        command = [str(self._install.bin_dir / SERVER), "--no-defaults", *(f"--{k}={v}" for k, v in options.items())]
        with self._directory.with_suffix(".log").open("ab") as log:
            self._child = subprocess.Popen(
                self._account.command(command, death_signal="KILL"),
                env=dict(BASE_ENVIRONMENT),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        self._wait_ready()

    def execute(self, *statements: str) -> list[Any]:
        """The rows of the last one."""
        with connect(self.dsn) as session, session.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def follow(self, primary: StockMariadb) -> None:
        """All that the other one has ever logged, and what it logs from now on."""
        self.execute(
            f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {primary.port}, MASTER_USER = '{_USER}', "
            f"MASTER_PASSWORD = '{primary._password}', MASTER_USE_GTID = slave_pos",  # of its own class
            "START SLAVE",
        )

    def stop(self) -> None:
        """It is gone."""
        child, self._child = self._child, None
        if child is None:
            return
        for signo in (signal.SIGTERM, signal.SIGKILL):
            child.send_signal(signo)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_TIMEOUT_S)
                return

    def _wait_ready(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._child is not None and self._child.poll() is None:
            with contextlib.suppress(Exception):
                self.execute("SELECT 1")
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"MariaDB did not start: see {self._directory.with_suffix('.log')}")
