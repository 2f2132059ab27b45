"""PostgreSQL as an engine: started on a data directory, watched, checked and stopped.

A run has one owner of its end: the task `_watch`. It waits for the main process, removes whatever is left of the
others, gives back shared memory, and yields the EngineExit; `stop` only sends signals and waits for it.

Sessions for administration go through the Unix socket, in a directory that only the account and root can enter.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import signal
import stat
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from aurora_ray import telemetry
from aurora_ray.config import MIB
from aurora_ray.durable import replace_file
from aurora_ray.engine.base import EngineExit, EngineInstall, StopMode, VolatilePattern
from aurora_ray.engine.credentials import verifies
from aurora_ray.engine.network import claim_port
from aurora_ray.engine.postgres_commit import (
    PRELOAD,
    commit_module,
    configured_preloads,
    stage_module,
    with_module,
)
from aurora_ray.engine.postgres_image import SUPERUSER
from aurora_ray.engine.postgres_settings import VOLATILE_PATTERNS, server_settings
from aurora_ray.engine.process import EngineProcess, processes_in
from aurora_ray.engine.shared_memory import posix_segments, remove_segments
from aurora_ray.errors import AuroraError, ConfigurationError, EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aurora_ray.engine.account import EngineAccount

logger = logging.getLogger(__name__)

_PID_NOTE: Final = "postgres.pid"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
IMMEDIATE_TIMEOUT_S: Final = 7.0  # PostgreSQL itself kills what has not followed after 5 s
KILL_TIMEOUT_S: Final = 10.0
ORPHAN_GRACE_S: Final = 0.2  # after an orderly end the others are on their way out already
READY_INTERVAL_S: Final = 0.01
CHECK_TIMEOUT_S: Final = 2.0
LOG_BYTES_MAX: Final = 32 * MIB  # then it becomes postgres.log.1, so at most twice this
SOCKET_DIR_BYTES_MAX: Final = 107 - len("/.s.PGSQL.65535")  # sockaddr_un
READY_LINE: Final = 7  # of postmaster.pid, from 0: pid, directory, start, port, sockets, address, shared memory, state

_SIGNALS: Final = {StopMode.FAST: signal.SIGINT, StopMode.IMMEDIATE: signal.SIGQUIT, StopMode.KILL: signal.SIGKILL}
_ROUGHER: Final = {StopMode.FAST: StopMode.IMMEDIATE, StopMode.IMMEDIATE: StopMode.KILL}

# No statement of a session that changes a password may reach the server's log, not even in an error.
_SILENT: Final = (
    "-c log_statement=none -c log_min_duration_statement=-1 -c log_min_duration_sample=-1 "
    "-c log_transaction_sample_rate=0 -c log_min_error_statement=panic -c track_activities=off"
)


class PostgresEngine:
    """One PostgreSQL server. `run_dir` is for its sockets and log; it must be reachable for the account.

    `port` 0 takes a free one at each start. `parameters` are PostgreSQL's own names and values; those that the storage
    depends on are refused (ConfigurationError) at the start. One run at a time; after its end it can start again.
    """

    def __init__(
        self,
        install: EngineInstall,
        account: EngineAccount,
        run_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        shared_buffers_bytes: int = 128 * MIB,
        max_connections: int = 100,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self._install = install
        self._account = account
        self._run_dir = run_dir
        self._host = host
        self._port_wanted = port
        self._port = port
        self._shared_buffers_bytes = shared_buffers_bytes
        self._max_connections = max_connections
        self._parameters = dict(parameters or {})
        self._socket_dir = _socket_dir(run_dir)
        self._process: EngineProcess | None = None
        self._watcher: asyncio.Task[EngineExit] | None = None
        self._segments: set[Path] = set()

    @property
    def install(self) -> EngineInstall:
        """The version in use."""
        return self._install

    @property
    def pid(self) -> int | None:
        """The postmaster's while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def port(self) -> int:
        """The TCP port; 0 before the start if it is to be chosen."""
        return self._port

    @property
    def log_path(self) -> Path:
        """What the server writes to stderr, all runs one after the other."""
        return self._run_dir / "postgres.log"

    @property
    def _pid_note(self) -> Path:
        """Holds the main process's id from the start to the end of a run."""
        return self._run_dir / _PID_NOTE

    def volatile_patterns(self) -> tuple[VolatilePattern, ...]:
        """What may stay out of the volume."""
        return VOLATILE_PATTERNS

    def dsn(self, passfile: Path, *, host: str | None = None, port: int | None = None) -> str:
        """The connection string for clients; `host` and `port` for one that goes through an endpoint."""
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(self._host, self._host)  # noqa: S104
        name = host or reachable
        netloc = f"[{name}]" if ":" in name else name
        return f"postgresql://{SUPERUSER}@{netloc}:{port or self._port}/postgres?passfile={quote(str(passfile))}"

    async def start(
        self,
        data_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Starts as writer and returns when it accepts statements; crash recovery, if needed, is part of it.

        `env` and `pass_fds` go to the server, and to a look at its configuration before that. Raises ConfigurationError
        (no such program, port in use, a refused parameter) or EngineError, which quotes the end of the log. Then
        nothing is left running.
        """
        if self._process is not None:
            raise EngineError(f"this engine already runs, as process {self._process.pid}")
        if not os.access(self._install.bin_dir / "postgres", os.X_OK):
            raise ConfigurationError(f"{self._install.bin_dir} has no postgres that can be run: is it still installed?")
        _check_data_dir(data_dir, self._account, self._install)
        _clear_lock(data_dir)
        self._prepare_run_dir()
        self._port = claim_port(self._host, self._port_wanted)
        command = await self._command(data_dir, env or {}, pass_fds)
        with telemetry.span("engine.spawn"):
            process = EngineProcess.spawn(
                command,
                account=self._account,
                env=env or {},
                pass_fds=pass_fds,
                work_dir=self._socket_dir,
                log_path=self.log_path,
            )
        self._process, self._segments = process, set()
        self._watcher = asyncio.create_task(self._watch(process), name=f"watch postgres {process.pid}")
        try:
            replace_file(self._pid_note, str(process.pid), durable=False)  # an engine without a note would be nobody's
            with telemetry.span("engine.recover"):
                async with asyncio.timeout(timeout_s):
                    await self._wait_ready(process, data_dir)
            with telemetry.span("engine.check"):
                await self.check(timeout_s=max(CHECK_TIMEOUT_S, timeout_s / 4))
        except TimeoutError:
            tail = process.log_tail()
            await self.stop(StopMode.KILL)
            raise EngineError(f"PostgreSQL was not ready within {timeout_s:g} s; its log ends:\n{tail}") from None
        except BaseException:
            await self.stop(StopMode.KILL)
            raise
        self._segments = posix_segments([process.pid])
        logger.info("PostgreSQL %s runs as process %d on port %d", self._install.version, process.pid, self._port)

    async def stop(self, mode: StopMode = StopMode.FAST, *, timeout_s: float = STOP_TIMEOUT_S) -> EngineExit | None:
        """Ends every process and says how the run ended; None if there has been none.

        A mode that does not finish within its time (`timeout_s` for the one asked for) is followed by the next rougher
        one. Raises EngineError if processes survive SIGKILL.
        """
        watcher, process = self._watcher, self._process
        if watcher is None:
            return None
        current: StopMode | None = mode
        limit_s = timeout_s
        while process is not None and current is not None and not watcher.done():
            if current is StopMode.KILL:
                self._segments |= posix_segments(process.members())
                await process.kill(KILL_TIMEOUT_S)
                break
            process.send(_SIGNALS[current])
            done, _ = await asyncio.wait([watcher], timeout=limit_s)
            if not done:
                logger.warning("PostgreSQL %d ignored a stop (%s) for %g s", process.pid, current, limit_s)
            current, limit_s = _ROUGHER.get(current), IMMEDIATE_TIMEOUT_S
        return await asyncio.shield(watcher)

    async def wait_exit(self) -> EngineExit:
        """Waits until the run has ended for whatever reason and all its processes are gone."""
        if self._watcher is None:
            raise EngineError("this engine has not been started")
        return await asyncio.shield(self._watcher)

    async def check(self, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Opens a session and runs SELECT 1. Raises EngineError if that does not succeed in time."""
        async with self._session(timeout_s) as session:
            await session.execute("SELECT 1")
        if self.log_path.stat().st_size > LOG_BYTES_MAX:
            await asyncio.to_thread(_rotate, self.log_path)

    async def set_superuser_password(self, password: str, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Makes `password` the superuser's, unless it is already. The server is sent a verifier and logs nothing."""
        async with self._session(timeout_s, options=_SILENT) as session:
            cursor = await session.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [SUPERUSER])
            row = await cursor.fetchone()
            if row is not None and verifies(password, row[0]):
                return
            verifier = session.pgconn.encrypt_password(password.encode(), SUPERUSER.encode(), b"scram-sha-256")
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
            await session.execute(statement.format(sql.Identifier(SUPERUSER), sql.Literal(verifier.decode())))

    @asynccontextmanager
    async def _session(self, timeout_s: float, *, options: str = "") -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """An administrator's session; everything in it must happen within the timeout. Raises EngineError."""
        try:
            async with asyncio.timeout(timeout_s):
                session = await psycopg.AsyncConnection.connect(
                    host=str(self._socket_dir),
                    port=self._port,
                    user=SUPERUSER,
                    dbname="postgres",
                    options=options,
                    application_name="aurora-ray",
                    autocommit=True,
                )
                try:
                    yield session
                finally:
                    await session.close()
        except TimeoutError:
            raise EngineError(f"PostgreSQL on port {self._port} did not answer within {timeout_s:g} s") from None
        except psycopg.Error as error:
            raise EngineError(f"PostgreSQL on port {self._port} refuses: {str(error).strip()}") from error

    async def _command(self, data_dir: Path, env: Mapping[str, str], pass_fds: Sequence[int]) -> list[str]:
        settings = server_settings(
            major=self._install.major,
            host=self._host,
            port=self._port,
            socket_dir=self._socket_dir,
            shared_buffers_bytes=self._shared_buffers_bytes,
            max_connections=self._max_connections,
            parameters=self._parameters,
        )
        module = commit_module(self._install, env)
        if module is not None:
            others = settings.get(PRELOAD)
            if others is None:
                others = await configured_preloads(self._install, self._account, data_dir, env, pass_fds)
            settings[PRELOAD] = with_module(stage_module(module, self._run_dir), others)
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._install.bin_dir / "postgres"), "-D", str(data_dir), *options]

    def _prepare_run_dir(self) -> None:
        """Makes what the server needs outside its data directory. Raises ConfigurationError."""
        self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._account.require_reachable(self._run_dir)
        if self._socket_dir.parent == self._run_dir:
            self._socket_dir.mkdir(mode=0o700, exist_ok=True)
            self._account.own(self._socket_dir, 0o700)
        else:
            _claim_shared_dir(self._socket_dir, self._account)
        for leftover in self._socket_dir.glob(".s.PGSQL.*"):
            leftover.unlink()
        forget_run(self._run_dir)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_MAX:
            _rotate(self.log_path)
        self.log_path.touch(mode=0o600)

    async def _wait_ready(self, process: EngineProcess, data_dir: Path) -> None:
        """Waits for "ready" in postmaster.pid: unlike trying to connect, this leaves no errors in the log."""
        lock = data_dir / "postmaster.pid"
        while True:
            if process.returncode is not None:
                raise _start_error(process, self._host, self._port)
            try:
                lines = lock.read_text().splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) > READY_LINE and lines[0] == str(process.pid) and lines[READY_LINE].strip() == "ready":
                return
            await process.wait_main(READY_INTERVAL_S)

    async def _watch(self, process: EngineProcess) -> EngineExit:
        """Sees a run to its end. Raises EngineError if processes survive SIGKILL."""
        returncode = await process.wait_main(None)
        ended_ns = time.time_ns()
        grace_s = ORPHAN_GRACE_S if returncode == 0 else 0.0
        try:
            if not await process.wait_gone(grace_s):
                self._segments |= posix_segments(process.members())
                await process.kill(KILL_TIMEOUT_S)
            remove_segments(process.pid, self._segments)
            self._pid_note.unlink(missing_ok=True)
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            return EngineExit(process.pid, returncode or 0, process.log_tail(), ended_ns)
        finally:
            process.close()
            self._process = None


def _check_data_dir(data_dir: Path, account: EngineAccount, install: EngineInstall) -> None:
    """Raises EngineError with what is wrong, before the server says it in its own words."""
    try:
        facts = data_dir.stat()
        version = (data_dir / "PG_VERSION").read_bytes().strip(b"\0\n ").decode("ascii", "replace")
        control = (data_dir / "global/pg_control").stat()
    except FileNotFoundError as error:
        raise EngineError(f"{data_dir} is not a PostgreSQL data directory: {error.filename} is missing") from error
    except OSError as error:
        raise EngineError(f"{data_dir} cannot be read: {error}") from error
    if not stat.S_ISDIR(facts.st_mode) or control.st_size == 0:
        raise EngineError(f"{data_dir} is not a PostgreSQL data directory: its control file is empty")
    if facts.st_uid != account.uid:
        raise EngineError(f"{data_dir} belongs to uid {facts.st_uid}, but the engine runs as {account.name}: chown it")
    if facts.st_mode & 0o027:
        raise EngineError(f"{data_dir} has mode {stat.S_IMODE(facts.st_mode):04o}: chmod it to 0700")
    if version and version != str(install.major):  # empty: a page of the mount that has not come yet
        raise EngineError(f"{data_dir} holds data of PostgreSQL {version[:16]!r}, not of {install.major}")


def _clear_lock(data_dir: Path) -> None:
    """Removes a stale postmaster.pid. Raises EngineError if a server, or what is left of one, works there.

    The server checks this too, but takes any living process with the number in the file for its predecessor.
    """
    running = processes_in(data_dir, "postgres")
    if running:
        raise EngineError(f"PostgreSQL already works on {data_dir}: processes {running}; stop them first")
    (data_dir / "postmaster.pid").unlink(missing_ok=True)


def forget_run(run_dir: Path) -> None:
    """Gives the kernel back what a run held whose end nobody saw to: its starter was killed too. All of it is gone."""
    note = run_dir / _PID_NOTE
    if note.exists():
        remove_segments(int(note.read_text() or 0))
        note.unlink()


def _start_error(process: EngineProcess, host: str, port: int) -> AuroraError:
    tail = process.log_tail()
    if "could not bind" in tail or "could not create any TCP/IP sockets" in tail:
        return ConfigurationError(f"port {port} on {host} is in use: stop what listens there or choose another port")
    return EngineError(f"PostgreSQL ended during its start with code {process.returncode}; its log ends:\n{tail}")


def _socket_dir(run_dir: Path) -> Path:
    """Below `run_dir`, or, if that makes a name too long for a socket, one in the temporary directory."""
    inside = run_dir / "socket"
    if len(os.fsencode(inside)) <= SOCKET_DIR_BYTES_MAX:
        return inside
    name = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"aurora-ray-{name}"  # others may write there: see _claim_shared_dir


def _claim_shared_dir(path: Path, account: EngineAccount) -> None:
    """Makes a private directory where everyone may make some. Raises ConfigurationError if someone else's is there."""
    try:
        path.mkdir(mode=0o700)
        account.own(path, 0o700)
    except FileExistsError:
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != account.uid or facts.st_mode & 0o077:
            raise ConfigurationError(
                f"{path} belongs to someone else: remove it, or use a data directory with a shorter name"
            ) from None


def _rotate(log_path: Path) -> None:
    """Moves the log's content aside. The server goes on writing: it appends, so it starts at the beginning again."""
    shutil.copyfile(log_path, log_path.with_name(log_path.name + ".1"))
    os.truncate(log_path, 0)
