"""What all servers have in common, whatever the engine: where they are, their runs, and how a run has ended.

A run has one owner of its end: a task, `_watch` of the engine's own server, that waits for the main process, sees to it
that nothing is left, and yields the EngineExit. `stop` only sends signals and waits for it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Final, TypedDict

from aurora_ray import telemetry
from aurora_ray.config import MIB
from aurora_ray.engine.dirs import rotate
from aurora_ray.engine.process import PARENT_DEATH_SIGNAL, EngineProcess
from aurora_ray.engine.sizes import LEAST_SIZE
from aurora_ray.engine.tree_edit import edit_tree
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import Client, EngineExit, EngineInstall, EngineTrouble
    from aurora_ray.engine.sizes import InstanceSize
    from aurora_ray.engine.start import Progress
    from aurora_ray.engine.tree_edit import Edit

PRELOADED: Final = "LD_PRELOAD"  # in a server's environment: the library that takes sockets which are handed over
LOG_BYTES_MAX: Final = 32 * MIB  # then it is set aside as NAME.log.1, so at most twice this


class Options(TypedDict, total=False):
    """How a server is to run, beside its installation, account and directory; see Server."""

    host: str
    port: int
    size: InstanceSize
    parameters: Mapping[str, str] | None
    name: str


class Server(ABC):
    """One server. `run_dir` is for its sockets and log; it must be reachable for the account.

    `port` 0 takes a free one at each start. `parameters` are the cluster's (the engine's own names and values); those
    that are not the user's to set are refused (ConfigurationError) at the start. One run at a time; after its end it
    can start again.
    """

    title: ClassVar[str]  # the engine's name, in sentences
    log_name: ClassVar[str]
    client: ClassVar[Client]

    def __init__(
        self,
        install: EngineInstall,
        account: EngineAccount,
        run_dir: Path,
        socket_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        size: InstanceSize = LEAST_SIZE,
        parameters: Mapping[str, str] | None = None,
        name: str = "",
    ) -> None:
        self._install = install
        self._account = account
        self._run_dir = run_dir
        self._socket_dir = socket_dir
        self._host = host
        self._port_wanted = port
        self._port = port
        self._size = size
        self._parameters = dict(parameters or {})
        self._name = name
        self._process: EngineProcess | None = None
        self._watcher: asyncio.Task[EngineExit] | None = None
        self._data_dir = run_dir
        self._env: dict[str, str] = {}
        self._pass_fds: tuple[int, ...] = ()
        self._troubles: tuple[EngineTrouble, ...] = ()
        self._first_start = False
        self._progress: Progress | None = None  # while it starts

    @property
    def install(self) -> EngineInstall:
        """The version in use."""
        return self._install

    @property
    def pid(self) -> int | None:
        """The main process's while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def port(self) -> int:
        """The TCP port; 0 before the start if it is to be chosen."""
        return self._port

    @property
    def first_start(self) -> bool:
        """Whether no start on this data directory was noted before the present one."""
        return self._first_start

    @property
    def troubles(self) -> tuple[EngineTrouble, ...]:
        """What of the user's is not in force in the present run."""
        return self._troubles

    @property
    def recovering(self) -> str:
        """How far a start is; empty when there is nothing to say."""
        return self._progress.words if self._progress is not None else ""

    @property
    def socket_dir(self) -> Path:
        """Where its Unix socket lies while it runs."""
        return self._socket_dir

    @property
    def log_path(self) -> Path:
        """What the server writes to stderr, all runs one after the other."""
        return self._run_dir / self.log_name

    def dsn(self, passfile: Path, *, host: str | None = None, port: int | None = None) -> str:
        """The connection string for clients; `host` and `port` for one that goes through an endpoint."""
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(self._host, self._host)  # noqa: S104
        return self.client.dsn([(host or reachable, port or self._port)], passfile)

    async def wait_exit(self) -> EngineExit:
        """Waits until the run has ended for whatever reason and all its processes are gone."""
        if self._watcher is None:
            raise EngineError("this engine has not been started")
        return await asyncio.shield(self._watcher)

    def _require_stopped(self) -> None:
        if self._process is not None:
            raise EngineError(f"this engine already runs, as process {self._process.pid}")

    def _spawn(
        self, command: Sequence[str], more: Mapping[str, str], *, death_signal: str = PARENT_DEATH_SIGNAL
    ) -> EngineProcess:
        """Begins a run; `more` environment. Raises EngineError."""
        with telemetry.span("engine.spawn"):
            process = EngineProcess.spawn(
                command,
                account=self._account,
                env={**self._env, **more},
                pass_fds=self._pass_fds,
                work_dir=self._socket_dir,
                log_path=self.log_path,
                death_signal=death_signal,
            )
        self._process = process
        self._watcher = asyncio.create_task(self._watch(process), name=f"watch {self.title} {process.pid}")
        return process

    @abstractmethod
    async def _watch(self, process: EngineProcess) -> EngineExit:
        """Sees a run to its end. Raises EngineError if processes survive SIGKILL."""

    async def _edit(self, edits: Sequence[Edit]) -> None:
        """Changes files of the data directory, as the volume's. Raises EngineError."""
        await edit_tree(self._data_dir, edits, account=self._account, env=self._env, pass_fds=self._pass_fds)

    @asynccontextmanager
    async def _answering(self, timeout_s: float) -> AsyncIterator[None]:
        """Around a question to the server: raises EngineError if there is no answer in time, or a refusal."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise EngineError(f"{self.title} on port {self._port} did not answer within {timeout_s:g} s") from None
        except OSError as error:
            raise EngineError(f"{self.title} on port {self._port} refuses: {error}") from error

    def _begin_log(self) -> None:
        """Before a run: there is a log, and it is not too long."""
        if self.log_path.exists() and self._log_is_long():
            rotate(self.log_path)
        self.log_path.touch(mode=0o600)

    async def _bound_log(self) -> None:
        """During a run."""
        if self._log_is_long():
            await asyncio.to_thread(rotate, self.log_path)

    def _log_is_long(self) -> bool:
        return self.log_path.stat().st_size > LOG_BYTES_MAX
