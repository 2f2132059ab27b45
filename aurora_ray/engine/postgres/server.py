"""PostgreSQL as an engine: started on a data directory, watched, checked and stopped.

A run has one owner of its end: the task `_watch`. It waits for the main process, removes whatever is left of the
others, gives back shared memory, and yields the EngineExit; `stop` only sends signals and waits for it.

Whether it is alive is asked without a session (probe), and a start depends on nothing that users can set: what
no server starts with is left out, step by step, and told (configuration). Sessions for administration go through the
Unix socket, in a directory that only the account and root can enter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import psycopg

from aurora_ray import telemetry
from aurora_ray.durable import replace_file
from aurora_ray.engine.base import EngineExit, StopMode, VolatilePattern
from aurora_ray.engine.dirs import HAND_OVER_NAME
from aurora_ray.engine.network import claim_port
from aurora_ray.engine.postgres import functions, password_once, promotion, told
from aurora_ray.engine.postgres.client import PostgresClient
from aurora_ray.engine.postgres.commit import (
    PRELOAD,
    commit_module,
    configured_preloads,
    stage_module,
    with_module,
)
from aurora_ray.engine.postgres.configuration import (
    GOOD_HBA,
    OUR_CONF,
    OUR_HBA,
    PG_HBA,
    Files,
    Rung,
    conf_text,
    sessions_fail,
    troubles_of,
)
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, in_production
from aurora_ray.engine.postgres.dirs import check_data_dir, clear_lock, make_sockets, socket_dir
from aurora_ray.engine.postgres.foresight import foresee
from aurora_ray.engine.postgres.image import SUPERUSER
from aurora_ray.engine.postgres.probe import ProbeAnswer, module_answers, postmaster_answers
from aurora_ray.engine.postgres.repair import Workshop
from aurora_ray.engine.postgres.settings import (
    VOLATILE_PATTERNS,
    check_parameters,
    default_settings,
    forced_settings,
    promoted_settings,
)
from aurora_ray.engine.postgres.shared_memory import posix_segments, remove_segments
from aurora_ray.engine.postgres.standby import begin
from aurora_ray.engine.postgres.standby.feed import PostgresFeed
from aurora_ray.engine.postgres.standby.takeover import Takeover
from aurora_ray.engine.postgres.start import StartProgress, first_complaint, wait_ready
from aurora_ray.engine.postgres.succession import NOT_OF_A_STANDBY, succession, switched_on
from aurora_ray.engine.process import EngineProcess
from aurora_ray.engine.server import PRELOADED, Server
from aurora_ray.engine.sizes import LEAST_SIZE
from aurora_ray.engine.start import StartRefusedError
from aurora_ray.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

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
    from aurora_ray.engine.postgres.promotion import Promotion
    from aurora_ray.engine.server import Options
    from aurora_ray.engine.sizes import InstanceSize
    from aurora_ray.log.filetable import FileTable

logger = logging.getLogger(__name__)

_PID_NOTE: Final = "postgres.pid"
_LIBRARY: Final = re.compile(r"could not (access file|load library) .*|incompatible library .*")
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
IMMEDIATE_TIMEOUT_S: Final = 7.0  # PostgreSQL itself kills what has not followed after 5 s
KILL_TIMEOUT_S: Final = 10.0
ORPHAN_GRACE_S: Final = 0.2  # after an orderly end the others are on their way out already
CHECK_TIMEOUT_S: Final = 2.0
PROMOTED_LOOK_S: Final = 0.005
POSTMASTER_EVERY: Final = 5  # checks that the module answers; all of them while one has just failed

_SIGNALS: Final = {StopMode.FAST: signal.SIGINT, StopMode.IMMEDIATE: signal.SIGQUIT, StopMode.KILL: signal.SIGKILL}
_ROUGHER: Final = {StopMode.FAST: StopMode.IMMEDIATE, StopMode.IMMEDIATE: StopMode.KILL}


class PostgresEngine(Server):
    """One PostgreSQL server; see Server."""

    title = "PostgreSQL"
    log_name = "postgres.log"
    client = PostgresClient()

    def __init__(
        self, install: EngineInstall, account: EngineAccount, run_dir: Path, **options: Unpack[Options]
    ) -> None:
        super().__init__(install, account, run_dir, socket_dir(run_dir), **options)
        self._segments: set[Path] = set()
        self._rung = Rung.ALL
        self._files = Files(None, None, None, None, None, ())
        self._checks = 0  # that succeeded one after the other
        self._follow: StandbyFeed | None = None
        self._promotion: Promotion | None = None  # by which the recovery of this start ends

    @property
    def hand_over(self) -> Path | None:
        """Where the endpoint hands it clients' sockets; None without the library that takes them."""
        if PRELOADED not in self._env:
            return None
        return self._socket_dir / HAND_OVER_NAME / f".s.PGSQL.{self._port}"

    @property
    def _pid_note(self) -> Path:
        """Holds the main process's id from the start to the end of a run."""
        return self._run_dir / _PID_NOTE

    def volatile_patterns(self, *, follows: bool = False) -> tuple[VolatilePattern, ...]:  # noqa: ARG002 - they change places
        """What may stay out of the volume, and what makes a server a standby or ends that, which is never in it."""
        return (*VOLATILE_PATTERNS, *promotion.FILES)

    async def make_feed(self, data_dir: Path, table: FileTable, lsn: int, read: ReadFile) -> StandbyFeed:
        """See Engine. The control file must be whole in `data_dir`. Raises EngineError."""
        major = self._install.major
        settings = {**default_settings(major=major, size=self._size), **check_parameters(self._parameters, major)}
        takeover = Takeover(self._edit, lambda: self._process)
        of_volume = begin.Mounted(data_dir, table, lsn, read)
        return begin.make_feed(self._run_dir, self._account, (major, settings), of_volume, takeover)

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
        """Starts as writer and returns when it is ready; crash recovery, if needed, is part of it. With `follow`, which
        is open, it starts as a hot standby that this feeds.

        `env` and `pass_fds` go to the server, and to what looks at its files before. It may take as long as anything
        moves: `timeout_s` is how long nothing may, `moved` what the caller knows of. Settings with which it does not
        start are left out (`troubles`). Raises ConfigurationError (no such program, port in use, a refused parameter)
        or EngineError, which quotes the end of the log. Then nothing is left running.
        """
        self._require_stopped()
        if not os.access(self._install.bin_dir / "postgres", os.X_OK):
            raise ConfigurationError(f"{self._install.bin_dir} has no postgres that can be run: is it still installed?")
        check_data_dir(data_dir, self._account, self._install)
        parameters = check_parameters(self._parameters, self._install.major)
        clear_lock(data_dir)
        self._prepare_run_dir()
        self._data_dir, self._env, self._pass_fds = data_dir, dict(env or {}), tuple(pass_fds)
        files, refused = Files.read(data_dir), None
        self._follow = follow
        if follow is not None:
            files = replace(files, signals=())
            await self._edit(begin.mark(data_dir, self._account))
        tries = [(rung, False) for rung in files.rungs()]
        if follow is None and not files.signals and await asyncio.to_thread(promotion.pays, data_dir):
            tries.insert(0, (Rung.ALL, True))
        for rung, promoted in tries:
            self._promotion = promotion.Promotion(data_dir, self._account) if promoted else None
            try:
                if refused is not None:
                    await self._edit(files.fallback(rung, first_complaint(refused)))
                await self._start_once(rung, files, parameters, timeout_s, moved)
            except StartRefusedError as error:
                what = "by promotion" if promoted else f"with {rung} of its configuration"
                logger.warning("PostgreSQL does not start %s: %s", what, error)
                refused = None if promoted else refused or error
                self._prepare_run_dir()
                continue
            self._rung, self._files, self._first_start = rung, files, files.good_auto is None
            self._troubles = tuple(troubles_of(rung, files, first_complaint(refused or EngineError()), parameters))
            break
        else:
            await self._edit(files.back())
            raise refused or EngineError("there is no configuration to start with")
        process = self._running()
        self._segments = posix_segments([process.pid])
        logger.info("PostgreSQL %s runs as process %d on port %d", self._install.version, process.pid, self._port)

    async def succession(self, data_dir: Path, table: FileTable) -> Succession:
        """See Engine and succession."""
        feed = self._follow
        if not isinstance(feed, PostgresFeed):
            raise EngineError("this server follows nobody")
        await feed.takeover.wait_idle()
        async with self._session(CHECK_TIMEOUT_S) as session:
            said = await session.execute(
                "select name, setting from pg_file_settings where name = any(%s) order by seqno",
                (list(NOT_OF_A_STANDBY),),
            )
            if on := switched_on(await said.fetchall()):
                raise EngineError(f"{', '.join(on)} cannot be switched on before another start")
        says = await asyncio.to_thread(succession, data_dir, table, feed.given)
        if await feed.copies_since(says.recovers_from):
            raise EngineError("a database was copied as files since its last restartpoint, from files that may change")
        return says

    async def promote(self, *, timeout_s: float) -> None:
        """See Engine. Its control file says when it has left recovery."""
        process, promoting = self._running(), promotion.Promotion(self._data_dir, self._account)
        control = self._data_dir / os.fsdecode(CONTROL_PATH)
        try:
            async with asyncio.timeout(timeout_s):
                while not in_production(control.read_bytes()):
                    if self._process is None:
                        raise EngineError("PostgreSQL ended while it was promoted")
                    promoting.urge(process, time.monotonic())
                    await asyncio.sleep(PROMOTED_LOOK_S)
        except TimeoutError as error:
            raise EngineError(f"PostgreSQL was not promoted within {timeout_s:g} s") from error
        finally:
            promoting.end()
        self._follow = None

    async def _start_once(
        self,
        rung: Rung,
        files: Files,
        parameters: Mapping[str, str],
        timeout_s: float,
        moved: Callable[[], object],
    ) -> None:
        self._port = claim_port(self._host, self._port_wanted)
        self._write_conf(rung, files, parameters)
        command = await self._command()
        if self._promotion is not None:
            self._promotion.begin()
        process = self._spawn(command, told.environment(self._socket_dir, self._name, self.hand_over))
        self._segments, self._checks = set(), 0
        progress = self._progress = StartProgress(process, self._socket_dir, moved, time.monotonic())
        try:
            replace_file(self._pid_note, str(process.pid), durable=False)  # an engine without a note would be nobody's
            with telemetry.span("engine.recover", {"aurora.promoted": self._promotion is not None}):
                address, urge = (self._host, self._port), self._promotion.urge if self._promotion is not None else None
                await wait_ready(process, self._data_dir, progress, timeout_s=timeout_s, address=address, urge=urge)
            with telemetry.span("engine.check"):
                await self.check(timeout_s=max(CHECK_TIMEOUT_S, timeout_s / 4))
        except BaseException:
            await self.stop(StopMode.KILL)
            raise
        finally:
            self._progress = None
            if self._promotion is not None:
                self._promotion.end()

    def _running(self) -> EngineProcess:
        if self._process is None:
            raise EngineError("PostgreSQL ended just after its start")
        return self._process

    async def foresee(self, data_dir: Path, bring: Bring, pages_max: int) -> None:
        """See Engine and foresight."""
        await foresee(data_dir, bring, pages_max)

    async def repair(
        self, data_dir: Path, kinds: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], password: str
    ) -> None:
        """See repair.Repair for what there is. Raises EngineError."""
        self._prepare_run_dir()
        self._data_dir = data_dir
        self._write_conf(Rung.OURS, Files.read(data_dir), {})
        server = self._server({"port": str(self._port_wanted or 1)})
        workshop = Workshop(data_dir, server, self._account, env, pass_fds)
        await workshop.repair(kinds, password)

    async def configure(self, parameters: Mapping[str, str], size: InstanceSize | None = None) -> None:
        """Other parameters of the cluster, or another size, read at once. Raises ConfigurationError."""
        self._parameters, self._size = check_parameters(parameters, self._install.major), size or self._size
        if self._process is not None and self._rung in (Rung.ALL, Rung.LAST_GOOD):
            self._write_conf(self._rung, self._files, self._parameters)
            self._process.send(signal.SIGHUP)

    async def hold_horizon(self, horizons: Sequence[Horizon], lease_s: float) -> None:
        """See Engine."""
        await told.hold_horizon(self._socket_dir, horizons, lease_s)

    def tell_replicas(
        self, rows: Sequence[ReplicaRow], regions: Sequence[RegionRow] = (), writer_at: tuple[str, int] | None = None
    ) -> None:
        """See Engine."""
        told.tell_replicas(self._socket_dir, self._account, rows, regions)
        told.tell_writer(self._socket_dir, self._account, writer_at)

    async def complete_databases(self) -> None:
        """See Engine and functions."""
        if told.has_module(self._install, self._env) and (edit := functions.missing(self._data_dir)) is not None:
            await functions.complete(self._session)
            await self._edit([edit])

    async def note_good_start(self) -> None:
        """Keeps the configuration of this run in the data directory, as the last that worked, if it is all in force.

        A configuration with which no session can begin has not worked. Raises EngineError.
        """
        if self._rung is not Rung.ALL:
            return
        if (why := await self._why_no_session()) is not None:
            self._troubles = (*self._troubles, sessions_fail(why))
            return
        await self._edit(Files.read(self._data_dir).worked())

    async def _why_no_session(self) -> str | None:
        """What a session says that ends for want of a library (session_preload_libraries, local_preload_libraries).

        Whether roles, databases and rules let anybody in is for users to decide, and no trouble.
        """
        try:
            async with self._session(CHECK_TIMEOUT_S, options="-c lc_messages=C"):
                return None
        except EngineError as error:
            refused = _LIBRARY.search(str(error))
            return refused[0] if refused else None

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
                self._segments |= posix_segments(process.members(fast=True))
                await process.kill(KILL_TIMEOUT_S)
                break
            process.send(_SIGNALS[current])
            done, _ = await asyncio.wait([watcher], timeout=limit_s)
            if not done:
                logger.warning("PostgreSQL %d ignored a stop (%s) for %g s", process.pid, current, limit_s)
            current, limit_s = _ROUGHER.get(current), IMMEDIATE_TIMEOUT_S
        return await asyncio.shield(watcher)

    async def check(self, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Whether it is alive, see probe; a refusal is a sign of life. Raises EngineError if it is not.

        The module is asked each time; the postmaster, which forks for the answer, less often while all is well.
        """
        checks, self._checks = self._checks, 0
        async with self._answering(timeout_s):
            answer = await module_answers(self._socket_dir)
            if answer is None or checks % POSTMASTER_EVERY == 0:
                await postmaster_answers(self._socket_dir, self._port)
        self._checks = checks + 1
        await self._bound_log()

    async def probe(self, *, timeout_s: float = CHECK_TIMEOUT_S) -> ProbeAnswer | None:
        """Where the WAL is; None from a server without the module. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await module_answers(self._socket_dir)

    async def give_password(self, password: str, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Makes `password` the superuser's if it has none: one that somebody set stays. Only a verifier is sent, and
        nothing of it is logged."""
        async with self._session(timeout_s, options=password_once.SILENT) as session:
            await password_once.give(session, SUPERUSER, password)

    async def write_back(self, *, timeout_s: float) -> None:
        """See Engine: a checkpoint."""
        async with self._session(timeout_s, options=f"-c statement_timeout={int(timeout_s * 1000)}") as session:
            await session.execute("CHECKPOINT")

    @asynccontextmanager
    async def _session(
        self, timeout_s: float, *, options: str = "", database: str = "postgres"
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """An administrator's session; everything in it must happen within the timeout. Raises EngineError."""
        try:
            async with self._answering(timeout_s):
                session = await psycopg.AsyncConnection.connect(
                    host=str(self._socket_dir),
                    port=self._port,
                    user=SUPERUSER,
                    dbname=database,
                    options=options,
                    application_name="aurora-ray",
                    autocommit=True,
                )
                try:
                    yield session
                finally:
                    await session.close()
        except psycopg.Error as error:
            raise EngineError(f"PostgreSQL on port {self._port} refuses: {str(error).strip()}") from error

    def _write_conf(self, rung: Rung, files: Files, parameters: Mapping[str, str]) -> None:
        hba = None
        if files.replaces_hba(rung):
            hba = self._data_dir / GOOD_HBA if files.good_hba is not None else self._run_dir / OUR_HBA
        # A size may ask for more than the machine gives, like anything else that was chosen.
        size = LEAST_SIZE if rung is Rung.OURS else self._size
        defaults = default_settings(major=self._install.major, size=size)
        text = conf_text(self._data_dir, rung, hba=hba, defaults=defaults, parameters=parameters)
        for name, content in ((OUR_CONF, text), (OUR_HBA, PG_HBA)):
            replace_file(self._run_dir / name, content, durable=False)  # made anew at each start
            self._account.own(self._run_dir / name, 0o600)

    async def _command(self) -> list[str]:
        module, preloads = commit_module(self._install, self._env), {}
        if module is not None:
            others = await configured_preloads(
                self._server({}),
                self._account,
                env=self._env,
                pass_fds=self._pass_fds,
                conf=self._run_dir / OUR_CONF,
                data_dir=self._data_dir,
            )
            preloads[PRELOAD] = with_module(stage_module(module, self._run_dir), others)
        return list(self._server(preloads))

    def _server(self, more: Mapping[str, str]) -> tuple[str, ...]:
        """The command line of a server on the data directory, with `more` settings."""
        socket_dirs = [self._socket_dir]
        if self.hand_over is not None:
            socket_dirs.append(self.hand_over.parent)
        forced = forced_settings(major=self._install.major, host=self._host, port=self._port, socket_dirs=socket_dirs)
        recovery = self._follow.settings if self._follow is not None else {}
        if self._promotion is not None:
            recovery = promoted_settings()
        settings = {"config_file": str(self._run_dir / OUR_CONF), **forced, **recovery, **more}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return (str(self._install.bin_dir / "postgres"), "-D", str(self._data_dir), *options)

    def _prepare_run_dir(self) -> None:
        """Makes what the server needs outside its data directory. Raises ConfigurationError."""
        self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._account.require_reachable(self._run_dir)
        make_sockets(self._socket_dir, self._run_dir, self._account)
        forget_run(self._run_dir)
        self._begin_log()

    async def _watch(self, process: EngineProcess) -> EngineExit:
        """Sees a run to its end. Raises EngineError if processes survive SIGKILL."""
        returncode = await process.wait_main(None)
        ended_ns = time.time_ns()
        grace_s = ORPHAN_GRACE_S if returncode == 0 else 0.0
        try:
            if not await process.wait_gone(grace_s):
                self._segments |= posix_segments(process.members(fast=True))
                await process.kill(KILL_TIMEOUT_S)
            remove_segments(process.pid, self._segments)
            self._pid_note.unlink(missing_ok=True)
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            return EngineExit(process.pid, returncode or 0, process.log_tail(), ended_ns)
        finally:
            process.close()
            self._process = None


def forget_run(run_dir: Path) -> None:
    """Gives the kernel back what a run held whose end nobody saw to: its starter was killed too. All of it is gone."""
    note = run_dir / _PID_NOTE
    if note.exists():
        remove_segments(int(note.read_text() or 0))
        note.unlink()
