"""MariaDB as an engine: started on a data directory, watched, checked and stopped.

A run has one owner of its end: the task `_watch`. It waits for the process, sees to it that nothing is left, and yields
the EngineExit; `stop` only sends signals and waits for it. The server is one process, and knows no end without a
checkpoint but a kill.

Whether it is alive is asked without a session (start.greets). Sessions for administration go through the Unix socket,
in a directory that only the engine's account and root can enter, as an account of ours that each start makes anew
(accounts). What no server starts with is left out, step by step, and told (`_Rung`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

from aurora_ray import telemetry
from aurora_ray.durable import replace_file
from aurora_ray.engine.base import EngineExit, EngineTrouble, StopMode, VolatilePattern
from aurora_ray.engine.dirs import HAND_OVER_NAME, make_private, short_dir
from aurora_ray.engine.mariadb import accounts, told
from aurora_ray.engine.mariadb.administration import Administration
from aurora_ray.engine.mariadb.client import ADMIN_FILE, MariadbClient
from aurora_ray.engine.mariadb.credentials import new_password, options_text
from aurora_ray.engine.mariadb.follow.feed import MariadbFeed
from aurora_ray.engine.mariadb.image import SERIES_FILE, SERVER_ID_FILE
from aurora_ray.engine.mariadb.install import SERVER, basedir
from aurora_ray.engine.mariadb.repair import repair_statements
from aurora_ray.engine.mariadb.settings import (
    COMMIT_LOGS,
    VOLATILE_PATTERNS,
    check_parameters,
    default_settings,
    forced_settings,
)
from aurora_ray.engine.mariadb.start import StartProgress, first_complaint, greets, wait_ready
from aurora_ray.engine.network import claim_port
from aurora_ray.engine.process import EngineProcess, processes_in
from aurora_ray.engine.server import PRELOADED, Server
from aurora_ray.engine.sizes import LEAST_SIZE
from aurora_ray.engine.start import StartRefusedError
from aurora_ray.engine.tree_edit import Edit, read_text
from aurora_ray.errors import EngineError
from aurora_ray.troubles import TroubleCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import (
        Bring,
        EngineInstall,
        Horizon,
        ReadFile,
        RegionRow,
        ReplicaRow,
        StandbyFeed,
        Succession,
    )
    from aurora_ray.engine.server import Options
    from aurora_ray.engine.sizes import InstanceSize
    from aurora_ray.log.filetable import FileTable

logger = logging.getLogger(__name__)

SOCKET_NAME: Final = "mariadb.sock"
STARTED_FILE: Final = "aurora.started"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
KILL_TIMEOUT_S: Final = 10.0
CHECK_TIMEOUT_S: Final = 2.0


class _Rung(StrEnum):
    """What a start is tried with."""

    ALL = "all"
    DEFAULTS = "our settings alone"  # not the cluster's parameters, nor its size
    BARE = "our settings alone, without our account and plugin"


class MariadbEngine(Server):
    """One MariaDB server; see Server."""

    title = "MariaDB"
    log_name = "mariadb.log"
    client = MariadbClient()

    def __init__(
        self, install: EngineInstall, account: EngineAccount, run_dir: Path, **options: Unpack[Options]
    ) -> None:
        super().__init__(install, account, run_dir, short_dir(run_dir, "socket", SOCKET_NAME), **options)
        self._rung = _Rung.ALL
        self._follow: MariadbFeed | None = None
        self._repairs: tuple[str, ...] = ()
        self._admin = Administration(self._socket_dir / SOCKET_NAME)

    @property
    def hand_over(self) -> Path | None:
        """Where the endpoint hands it clients' sockets; None without the library that takes them."""
        return self._socket_dir / HAND_OVER_NAME if PRELOADED in self._env else None

    def volatile_patterns(self, *, follows: bool = False) -> tuple[VolatilePattern, ...]:  # noqa: ARG002
        """What may stay out of the volume."""
        return VOLATILE_PATTERNS

    async def succession(self, data_dir: Path, table: FileTable) -> Succession:  # noqa: ARG002
        """See Engine: its replica has a log of its own, which is not the volume's."""
        raise EngineError("MariaDB's replicas do not go on as writers")

    async def promote(self, *, timeout_s: float) -> None:  # noqa: ARG002
        """See succession."""
        raise EngineError("MariaDB's replicas do not go on as writers")

    async def make_feed(self, data_dir: Path, table: FileTable, lsn: int, read: ReadFile) -> StandbyFeed:
        """See Engine. Raises EngineError for a volume that has no binary log."""
        self._data_dir = data_dir
        return MariadbFeed((self._install.version, self._server_id()), self._admin, table=table, lsn=lsn, read=read)

    async def start(
        self,
        data_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        timeout_s: float = START_TIMEOUT_S,
        moved: Callable[[], object] = lambda: None,
        follow: StandbyFeed | None = None,
    ) -> None:
        """Starts and returns when it is ready; crash recovery, if needed, is part of it. Whoever is to follow is a
        replica from there on.

        It may take as long as anything moves: `timeout_s` is how long nothing may, `moved` what the caller knows of.
        Settings with which it does not start are left out (`troubles`). Raises ConfigurationError (port in use, a
        refused parameter), or EngineError, which quotes the end of the log. Then nothing is left running.
        """
        assert follow is None or isinstance(follow, MariadbFeed), "a feed is of its engine"  # noqa: S101
        self._require_stopped()
        self._follow = follow
        parameters = check_parameters(self._parameters)
        self._check_data_dir(data_dir)
        self._data_dir, self._env, self._pass_fds = data_dir, dict(env or {}), tuple(pass_fds)
        self._first_start = not (data_dir / STARTED_FILE).exists()
        refused: StartRefusedError | None = None
        for rung in _Rung:
            try:
                await self._start_once(rung, parameters, timeout_s, moved)
            except StartRefusedError as error:
                refused = refused or error
                logger.warning("MariaDB does not start with %s: %s", rung, error)
                continue
            self._rung, self._repairs = rung, ()
            self._troubles = tuple(_troubles(rung, refused))
            break
        else:
            raise refused or EngineError("there is no configuration to start with")
        if follow is not None:
            await self._begin_following(follow)
        logger.info("MariaDB %s runs as process %s on port %d", self._install.version, self.pid, self._port)

    async def _begin_following(self, feed: MariadbFeed) -> None:
        try:
            await feed.begin()
        except BaseException:
            await self.stop(StopMode.KILL)
            raise

    async def _start_once(
        self, rung: _Rung, parameters: Mapping[str, str], timeout_s: float, moved: Callable[[], object]
    ) -> None:
        self._prepare_run_dir()
        self._port = claim_port(self._host, self._port_wanted)
        more = told.environment(self._socket_dir, self._name, self.hand_over, follows=self._follow is not None)
        if self._follow is None:
            more["AURORA_ORDERED_FILES"] = ":".join(COMMIT_LOGS)
        process = self._spawn(self._command(rung, parameters), more, death_signal="KILL")
        progress = self._progress = StartProgress(process, moved, time.monotonic())
        try:
            with telemetry.span("engine.recover"):
                address = (self._host, self._port)
                socket = self._socket_dir / SOCKET_NAME
                await wait_ready(process, socket, progress, timeout_s=timeout_s, address=address)
        except BaseException:
            await self.stop(StopMode.KILL)
            raise
        finally:
            self._progress = None

    def _command(self, rung: _Rung, parameters: Mapping[str, str]) -> list[str]:
        """The command line; what it names is written first. No secret is on it."""
        chosen = default_settings(self._size if rung is _Rung.ALL else LEAST_SIZE)
        if rung is _Rung.ALL:
            chosen |= parameters
        conf = self._run_dir / "mariadb.cnf"
        lines = [f'{name}="{value}"' for name, value in chosen.items()]
        self._write(conf, "\n".join(["[mariadbd]", *lines, ""]))
        forced = forced_settings(
            basedir=basedir(self._install),
            data_dir=self._data_dir,
            log_dir=self._log_dir,
            socket=self._socket_dir / SOCKET_NAME,
            tmp_dir=self._tmp_dir,
            host=self._host,
            port=self._port,
            server_id=self._server_id(),
        )
        if self.hand_over is not None:
            forced["bind_address"] += f",{told.HAND_OVER_FOR}"
        if self._follow is not None:
            forced |= self._follow.settings
        if rung is not _Rung.BARE:
            forced |= told.plugin_settings(self._install, self._run_dir)
            password = new_password()
            statements = (*self._repairs, *accounts.at_start(password))  # of the first, readers are told
            script = self._socket_dir / "init.sql"
            self._write(script, "".join(f"{statement};\n" for statement in statements))
            ours = {"user": accounts.OURS, "password": password, "socket": str(self._socket_dir / SOCKET_NAME)}
            self._write(self._socket_dir / ADMIN_FILE, options_text(ours))
            self._admin.password = password
            forced["init_file"] = str(script)
        options = [f"--{name}={value}" for name, value in forced.items()]
        return [str(self._install.bin_dir / SERVER), f"--defaults-file={conf}", *options]

    def _write(self, path: Path, content: str) -> None:
        replace_file(path, content, durable=False)  # made anew at each start
        self._account.own(path, 0o600)

    async def foresee(self, data_dir: Path, bring: Bring, pages_max: int) -> None:
        """See Engine. What InnoDB's recovery is going to read is not known beforehand."""

    async def repair(
        self,
        data_dir: Path,  # noqa: ARG002
        kinds: Sequence[str],
        *,
        env: Mapping[str, str],  # noqa: ARG002
        pass_fds: Sequence[int],  # noqa: ARG002
        password: str,
    ) -> None:
        """See repair: what is asked for is done by the next start, before anybody gets in."""
        self._repairs = repair_statements(kinds, password)

    async def configure(self, parameters: Mapping[str, str], size: InstanceSize | None = None) -> None:
        """Other parameters of the cluster, or another size: those that can be are in force at once. Raises
        ConfigurationError, EngineError."""
        before = {**default_settings(self._size), **self._parameters}
        self._parameters, self._size = check_parameters(parameters), size or self._size
        defaults = default_settings(self._size)
        if self._process is not None and self._rung is _Rung.ALL:
            await self._admin.set_global(before, {**defaults, **self._parameters}, defaults)

    async def hold_horizon(self, horizons: Sequence[Horizon], lease_s: float) -> None:
        """Nobody follows."""

    def tell_replicas(
        self,
        rows: Sequence[ReplicaRow],
        regions: Sequence[RegionRow] = (),  # noqa: ARG002
        writer_at: tuple[str, int] | None = None,  # noqa: ARG002
    ) -> None:
        """What sessions are shown of their cluster (information_schema.replica_host_status) from now on."""
        told.tell_replicas(self._socket_dir, self._account, rows)

    async def write_back(self, *, timeout_s: float) -> None:
        """See Engine: all dirty pages, and with them the checkpoint follows."""
        await self._admin.write_back(timeout_s)

    async def complete_databases(self) -> None:
        """Nothing is in them."""

    async def note_good_start(self) -> None:
        """Notes that there was a start. Raises EngineError."""
        if not (self._data_dir / STARTED_FILE).exists():
            await self._edit([Edit(STARTED_FILE, self._install.version + "\n")])

    async def stop(self, mode: StopMode = StopMode.FAST, *, timeout_s: float = STOP_TIMEOUT_S) -> EngineExit | None:
        """Ends the server and says how the run ended; None if there has been none. What does not end in order within
        `timeout_s` is killed. Raises EngineError if it survives SIGKILL."""
        watcher, process = self._watcher, self._process
        if watcher is None:
            return None
        if process is not None and not watcher.done():
            if mode is StopMode.FAST:
                process.send(signal.SIGTERM)
                done, _ = await asyncio.wait([watcher], timeout=timeout_s)
                if not done:
                    logger.warning("MariaDB %d ignored a stop for %g s", process.pid, timeout_s)
            if not watcher.done():
                await process.kill(KILL_TIMEOUT_S)
        return await asyncio.shield(watcher)

    async def check(self, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Whether it is alive: it greets whoever comes. Raises EngineError if it does not."""
        async with self._answering(timeout_s):
            await greets(self._socket_dir / SOCKET_NAME)
        await self._bound_log()

    async def give_password(self, password: str, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Makes `password` the owner's if he has none: one that somebody set stays. Only a hash is sent."""
        await self._admin.give_password(password, timeout_s)

    @property
    def _tmp_dir(self) -> Path:
        return self._run_dir / "tmp"

    @property
    def _log_dir(self) -> Path:
        """For the logs that its users switch on."""
        return self._run_dir / "logs"

    def _server_id(self) -> int:
        text = read_text(self._data_dir / os.fsdecode(SERVER_ID_FILE))
        if text is None or not text.strip().isdigit():
            raise EngineError(f"{self._data_dir} has no number of its server: it has not come from the volume yet")
        return int(text)

    def _check_data_dir(self, data_dir: Path) -> None:
        """Raises EngineError with what is wrong, before the server says it in its own words."""
        series = read_text(data_dir / os.fsdecode(SERIES_FILE))
        if series is None:
            raise EngineError(f"{data_dir} is not a MariaDB data directory: {os.fsdecode(SERIES_FILE)} is missing")
        if series.strip() != self._install.series:
            raise EngineError(
                f"{data_dir} holds data of MariaDB {series.strip()[:16]!r}, not of {self._install.series}"
            )
        if (owner := data_dir.stat().st_uid) != self._account.uid:
            raise EngineError(
                f"{data_dir} belongs to uid {owner}, but the engine runs as {self._account.name}: chown it"
            )
        running = processes_in(data_dir, SERVER)
        if running:
            raise EngineError(f"MariaDB already works on {data_dir}: processes {running}; stop them first")

    def _prepare_run_dir(self) -> None:
        """Makes what the server needs outside its data directory. Raises ConfigurationError."""
        self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._account.require_reachable(self._run_dir)
        make_private(self._socket_dir, self._run_dir, self._account)
        for name in (SOCKET_NAME, HAND_OVER_NAME):
            (self._socket_dir / name).unlink(missing_ok=True)
        shutil.rmtree(self._tmp_dir, ignore_errors=True)  # what a killed server left
        for directory in (self._tmp_dir, self._log_dir):
            directory.mkdir(mode=0o700, exist_ok=True)
            self._account.own(directory, 0o700)
        self._begin_log()

    async def _watch(self, process: EngineProcess) -> EngineExit:
        """Sees a run to its end. Raises EngineError if a process survives SIGKILL."""
        returncode = await process.wait_main(None)
        ended_ns = time.time_ns()
        try:
            if not await process.wait_gone(0.0):
                await process.kill(KILL_TIMEOUT_S)
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            return EngineExit(process.pid, returncode or 0, process.log_tail(), ended_ns)
        finally:
            process.close()
            self._process = None


def _troubles(rung: _Rung, refused: StartRefusedError | None) -> list[EngineTrouble]:
    if refused is None:
        return []
    sentence = (
        f"The engine does not start with its parameters ({first_complaint(refused)}), so it runs with {rung}: set or "
        "reset them with `aurora parameters`."
    )
    return [EngineTrouble(TroubleCode.PARAMETER_LEFT_OUT, sentence)]
