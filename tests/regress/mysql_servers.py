# ruff: noqa: S608 - all names in the statements are the servers' own
"""The two servers that MariaDB's suite is run on, alike but for what is under them, and how it is run on them."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql

from aurora_ray.engine.account import find_account
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.mariadb.client import ADMIN_FILE
from aurora_ray.engine.mariadb.connection import connect
from aurora_ray.engine.mariadb.credentials import read_options
from aurora_ray.engine.mariadb.image import prepare_image
from aurora_ray.engine.mariadb.install import find_install
from aurora_ray.engine.mariadb.settings import default_settings, forced_settings
from aurora_ray.engine.sizes import size_on
from benchmarks.systems.mariadb import StockMariadb
from tests.cli.fleet import CliFleet, fleet_at, kill
from tests.support.polling import poll_until_blocking

MEMORY_BYTES = 1 << 30
ANSWER_S = 60.0
FILES_STAY = 1010  # a test has copied files into a database, which has no tables any more but cannot go
TEST_MINUTES = 2  # of one test, as the suite counts
# As the suite has its own servers; what only a start can set stays as it is with us, on both.
GLOBALS = {
    "binlog_direct_non_transactional_updates": "1",
    "character_set_server": "'latin1'",
    "connect_timeout": "60",
    "default_storage_engine": "'MyISAM'",
    "gtid_strict_mode": "0",
    "histogram_type": "'json_hb'",
    "innodb_stats_persistent": "0",
    "key_buffer_size": "1048576",
    "local_infile": "1",
    "log_bin_trust_function_creators": "1",
    "max_heap_table_size": "1048576",
    "slave_net_timeout": "120",
    "sort_buffer_size": "262144",
    "time_zone": "'+03:00'",
    "use_stat_tables": "'preferably'",
}
# What the volume is for, or what lies elsewhere on a server of one's own.
OUR_OWN = (
    "basedir", "bind_address", "datadir", "general_log_file", "innodb_doublewrite", "innodb_flush_method",
    "innodb_log_file_buffering", "innodb_use_native_aio", "loose_innodb_log_file_mmap", "pid_file", "port",
    "server_id", "slow_query_log_file", "socket",
)  # fmt: skip
ROOT = tuple(  # one comes by an address, the other is whom the suite's procedures run as
    statement
    for host in ("%", "localhost")
    for statement in (
        f"CREATE OR REPLACE USER root@'{host}' IDENTIFIED BY ''",
        f"GRANT ALL PRIVILEGES ON *.* TO root@'{host}' WITH GRANT OPTION",
    )
)
OWN_DATABASES = ("information_schema", "performance_schema", "mysql", "sys", "mtr")
LEFT = ("columns_priv", "db", "func", "plugin", "procs_priv", "proxies_priv", "roles_mapping", "servers", "tables_priv")
OURS_STAY = "user IN ('aurora_ray', 'bench', 'system user', 'event_scheduler', '')"
GIVEN = ("include/mtr_warnings.sql", "include/mtr_check.sql")
NO_STATEMENTS = re.compile(r"^(?:delimiter|use) .*$|^[ \t]*--.*$", re.MULTILINE | re.IGNORECASE)
ZONES = "../mysql_test_data_timezone.sql"


@dataclass(slots=True)
class Server:
    """One of the two. `admin` makes a session that may do everything, `revive` has a server that does not answer come
    back, `address` says where it is."""

    address: Callable[[], tuple[str, int]]
    admin: Callable[[], Any]
    revive: Callable[[], None]
    before: dict[str, str] | None = None  # its global variables, as they are to be
    users: tuple[str, ...] = ()

    def prepare(self, suite: Path) -> None:
        """Gives it what the suite expects of any server."""
        with contextlib.closing(self.admin()) as session, session.cursor() as cursor:
            for statement in (*ROOT, "CREATE OR REPLACE DATABASE mtr", "CREATE DATABASE IF NOT EXISTS test"):
                cursor.execute(statement)
            for name, value in GLOBALS.items():
                cursor.execute(f"SET GLOBAL {name} = {value}")
            cursor.execute("USE mtr")
            for file in GIVEN:  # whose statements end with "||", as the suite's own program knows
                for statement in NO_STATEMENTS.sub("", (suite / file).read_text()).split("||"):
                    if statement.strip():
                        cursor.execute(statement)
        self._feed("mysql", (suite / ZONES).read_bytes())
        with contextlib.closing(self.admin()) as session, session.cursor() as cursor:
            self.before = _globals(cursor)
            cursor.execute("SELECT concat(user, '@', host) FROM mysql.global_priv")
            self.users = tuple(str(user) for (user,) in cursor.fetchall())

    def clean(self) -> None:
        """Takes away what tests have left."""
        try:
            self._clean()
        except (pymysql.MySQLError, OSError):
            self.revive()
            self._clean()

    def _clean(self) -> None:
        with contextlib.closing(self.admin()) as session, session.cursor() as cursor:
            self._clean_by(cursor)

    def _clean_by(self, cursor: Any) -> None:
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute(f"SELECT id FROM information_schema.processlist WHERE NOT {OURS_STAY}")
        for (thread,) in cursor.fetchall():
            with contextlib.suppress(pymysql.MySQLError):  # it has ended
                cursor.execute(f"KILL {thread}")
        cursor.execute("SHOW DATABASES")
        for (name,) in cursor.fetchall():
            if name not in OWN_DATABASES:
                quoted = str(name).replace("`", "``")
                try:
                    cursor.execute(f"DROP DATABASE `{quoted}`")
                except pymysql.OperationalError as error:
                    if error.args[0] != FILES_STAY:
                        raise
        names = ", ".join(f"'{user}'" for user in self.users)
        for table in LEFT:
            cursor.execute(f"DELETE FROM mysql.{table}")
        cursor.execute(f"DELETE FROM mysql.global_priv WHERE concat(user, '@', host) NOT IN ({names})")
        cursor.execute("FLUSH PRIVILEGES")
        for statement in (*ROOT, "CREATE DATABASE IF NOT EXISTS test"):
            cursor.execute(statement)
        now = _globals(cursor)
        for name, value in (self.before or {}).items():
            if now.get(name) != value:
                with contextlib.suppress(pymysql.MySQLError):  # of a kind that goes by itself
                    cursor.execute(f"SET GLOBAL {name} = {_literal(value)}")

    def _feed(self, database: str, script: bytes) -> None:
        host, port = self.address()
        command = ["mariadb", "--no-defaults", f"--host={host}", f"--port={port}", "--user=root", database]
        done = subprocess.run(command, input=script, capture_output=True, check=False, timeout=ANSWER_S)
        if done.returncode:
            raise SystemExit(f"the suite cannot be prepared: {done.stderr.decode(errors='replace')[:2000]}")


def _globals(cursor: Any) -> dict[str, str]:
    cursor.execute(
        "SELECT variable_name, global_value FROM information_schema.system_variables "
        "WHERE variable_scope <> 'SESSION ONLY' AND read_only = 'NO' AND global_value IS NOT NULL "
        "AND variable_name NOT LIKE 'gtid%pos' AND variable_name NOT LIKE '%state'"
    )
    return {str(name): str(value) for name, value in cursor.fetchall()}


def _literal(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return value


@contextmanager
def ours(directory: Path, suite: Path) -> Iterator[Server]:
    """A cluster of a fleet of its own, by its cluster endpoint."""
    with fleet_at(directory / "fleet", up=False) as fleet:
        fleet.up("--engine", "mysql", "--memory", str(MEMORY_BYTES))

        def address() -> tuple[str, int]:
            end = fleet.status()["endpoints"]["cluster"]
            return str(end["host"]), int(end["port"])

        def admin() -> Any:
            options = read_options(_socket_of(fleet).with_name(ADMIN_FILE))
            return pymysql.connect(
                unix_socket=options["socket"],
                user=options["user"],
                password=options["password"],
                autocommit=True,
                read_timeout=ANSWER_S,
            )

        def revive() -> None:
            kill(int(fleet.status()["instances"][0]["pid"]))
            poll_until_blocking(lambda: _answers(admin), ANSWER_S, interval_s=0.5, what="the server is back")

        server = Server(address, admin, revive)
        server.prepare(suite)
        yield server


def _socket_of(fleet: CliFleet) -> Path:
    pid = fleet.status()["instances"][0]["pid"]
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return Path(next(word.partition("=")[2] for word in words if word.startswith("--socket=")))


def _answers(admin: Callable[[], Any]) -> bool:
    try:
        admin().close()
    except (pymysql.MySQLError, OSError, StopIteration, KeyError):
        return False
    return True


@contextmanager
def stock(directory: Path, suite: Path) -> Iterator[Server]:
    """A server of the same binary on a local disk, with the same settings but for what is the volume's."""
    install, account = find_install(), find_account("aurora-ray")
    images = directory / "images"
    images.mkdir(mode=0o711)
    images.chmod(0o711)
    tree = prepare_image(install, account, images).tree
    size = size_on(this_machine(), MEMORY_BYTES)
    private = directory / "private"
    private.mkdir()
    account.own(private, 0o700)
    here = Path("unused")
    forced = forced_settings(
        basedir=here, data_dir=here, log_dir=here, socket=here, tmp_dir=private, host="", port=0, server_id=1
    )
    settings = {n: v for n, v in {**default_settings(size), **forced}.items() if n not in OUR_OWN}
    running: list[StockMariadb] = []

    def begin() -> None:
        if running:
            running.pop().stop()
        fresh = Path(tempfile.mkdtemp(prefix="stock-", dir=directory))
        fresh.chmod(0o711)
        server = StockMariadb(install, account, fresh / "data", size)
        running.append(server)
        server.start(tree, settings, server_id=1)

    def admin() -> Any:
        return connect(running[0].dsn, read_timeout=ANSWER_S)

    def revive() -> None:
        begin()
        server.prepare(suite)

    server = Server(lambda: ("127.0.0.1", running[0].port), admin, revive)
    try:
        revive()
        yield server
    finally:
        while running:
            running.pop().stop()


def run_suite(server: Server, suite: Path, name: str, tests: Sequence[str], limit_s: float) -> str:
    """What the suite printed of these tests, run from outside on a server that was cleaned."""
    server.clean()
    host, port = server.address()
    with tempfile.TemporaryDirectory(prefix="mtr-") as made, tempfile.TemporaryFile() as printed:
        command = [
            "perl", "mysql-test-run.pl", f"--suite={name}", f"--do-test=^({'|'.join(tests)})$", f"--vardir={made}/var",
            "--extern", f"host={host}", "--extern", f"port={port}", "--extern", "user=root", "--extern", "protocol=tcp",
            "--force", "--max-test-fail=0", "--retry=1", f"--testcase-timeout={TEST_MINUTES}", "--noreorder",
            "--nowarnings", "--nocheck-testcases",
        ]  # fmt: skip
        child = subprocess.Popen(
            command,
            cwd=suite,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            child.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        printed.seek(0)
        return printed.read().decode(errors="replace")
