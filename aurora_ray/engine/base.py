"""What every engine adapter offers, and the words they share.

An engine is one unmodified database server on one data directory. The adapter knows how to initialise, configure,
start, watch and stop it; it knows nothing of volumes: whatever makes the data directory durable comes in through the
environment (`env`) and inherited file descriptors (`pass_fds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.sizes import InstanceSize
    from aurora_ray.errors import AuroraError
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.flush import Flush
    from aurora_ray.log.record import Record
    from aurora_ray.troubles import TroubleCode


@dataclass(frozen=True, slots=True)
class TreePart:
    """A directory that an installation needs, and where it goes in a copy of the installation."""

    source: Path
    relative: str


@dataclass(frozen=True, slots=True)
class EngineInstall:
    """One installed version of an engine.

    `parts` are the directories that make up the installation if it works from wherever it is copied to; empty if it
    only works where it is (a distribution's package). `series`: the versions that open each other's data directories,
    by the numbers (`series_numbers`) that they share; what a cluster is declared with.
    """

    kind: str
    version: str
    bin_dir: Path
    parts: tuple[TreePart, ...] = ()
    series_numbers: int = 1

    @property
    def series(self) -> str:
        """As "18", or "10.11"."""
        return ".".join(self.version.split(".")[: self.series_numbers])

    @property
    def major(self) -> int:
        """The number before the first dot."""
        return int(self.version.partition(".")[0])


class StopMode(StrEnum):
    """How to end an engine, from the politest to the one that always works."""

    FAST = "fast"  # ends sessions, writes a checkpoint; the next start needs no recovery
    IMMEDIATE = "immediate"  # ends at once without a checkpoint, in order; the next start recovers
    KILL = "kill"  # SIGKILL to every process


class VolatileKind(StrEnum):
    """How a pattern is compared with a path relative to the data directory."""

    EXACT = "exact"  # the whole path equals it
    BELOW = "below"  # the path lies below this directory; the directory itself is durable
    COMPONENT = "component"  # some component equals it, the last one included
    NAME = "name"  # fnmatch(3) of the last component


class VolatilePattern(NamedTuple):
    """Paths that an engine can lose at any moment without losing anything: they stay out of the volume."""

    kind: VolatileKind
    pattern: str


@dataclass(frozen=True, slots=True)
class EngineTrouble:
    """Something that an engine's user should know of; `sentence` says what it is and what helps."""

    code: TroubleCode
    sentence: str


@dataclass(frozen=True, slots=True)
class EngineExit:
    """How an engine ended: `returncode` is negative for a signal, `log_tail` its last lines, `ended_ns` Unix time."""

    pid: int
    returncode: int
    log_tail: str
    ended_ns: int = 0

    @property
    def clean(self) -> bool:
        """True if the engine shut down in order."""
        return self.returncode == 0


@dataclass(frozen=True, slots=True)
class Horizon:
    """The oldest transactions of which a reader's sessions still need rows, as the engine counts; 0: none.

    The writer must not remove those rows for as long as the horizon is told anew, and a little longer."""

    xmin: int
    catalog_xmin: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """What an engine's users are told of one instance of their cluster; times in Unix seconds, `cpu` in percent.

    `server_id`: what they know it by, which no other instance of a global cluster is called; `instance_id`: what it is
    called in its fleet, if that is not the same. Other regions are not told it.
    """

    server_id: str
    session_id: str  # MASTER_SESSION_ID for the writer, else anything that is the incarnation's own
    cpu: float
    replica_lag_ms: float
    last_update_s: float
    host_id: str = ""  # its identifier for who came by an address of the cluster's own (control/model/addresses.py)
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class RegionRow:
    """What an engine's users are told of one region of their global cluster: up to where it has redo, how far it is
    behind the primary (-1: it is that), when that was true, and what serves there, with the LSN that it shows."""

    region: str
    lsn: int
    lag_ms: float
    at_s: float
    instances: tuple[tuple[ReplicaRow, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Replayed:
    """Up to which LSN of the volume an engine that follows shows it. `waits_since_s`: since when (monotonic clock) the
    oldest flush that it was given and does not show is known; None if there is none."""

    lsn: int
    waits_since_s: float | None


class FilePart(NamedTuple):
    """`page_count` pages of a file of the volume from `first_page` on; `extents`: see log.filetable.Entry."""

    file_id: int
    extents: Sequence[int]
    first_page: int
    page_count: int


class ReadFile(Protocol):
    """How a feed reads what it did not see being written."""

    async def __call__(self, part: FilePart, lsn: int, /) -> list[bytes | None]:
        """The pages as of an LSN, fewer than asked for at the file's end; None: never written."""


class PagesOf(NamedTuple):
    """`page_count` pages from `first_page` on of the file at a path, relative to the data directory."""

    path: bytes
    first_page: int
    page_count: int


class Bring(Protocol):
    """How an engine that is being started has pages of its files brought, before it reads them."""

    async def __call__(self, pages: Iterable[PagesOf], /) -> None:
        """Returns when they are there; no two of `pages` overlap, and what there is not is left out."""


class Succession(NamedTuple):
    """What an engine that follows says of its files when it is to go on as the writer, on the same directory, which
    then is the volume's. `decides`: the file (and bytes of it) that says from where a crash is recovered. It is the
    first that the volume hears of, as `page`, and these bytes change only when the volume has all pages that were
    written here. `of_volume`: patterns (fnmatch, on paths) of files that are as the volume has them. `removes`: of what
    the engine removes by itself; files besides are not lost because this engine has never heard of them.
    `recovers_from`: where that recovery begins, in what the engine was fed with (StandbyFeed.given). `reads`: what the
    engine reads first, of files of the volume. `same`: of these, the number of first pages that the engine has written
    here as the volume has them."""

    decides: bytes
    first_byte: int
    end_byte: int
    page: bytes
    of_volume: tuple[str, ...]
    removes: tuple[str, ...]
    recovers_from: int
    reads: tuple[PagesOf, ...] = ()
    same: tuple[tuple[bytes, int], ...] = ()


class StandbyFeed(Protocol):
    """What an engine is fed with that follows its writer: the volume's durable log, cut to what the engine replays."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What the engine must be started with to follow this."""

    @property
    def horizon(self) -> Horizon | None:
        """What the engine's sessions need; None if it has not said so lately."""

    @property
    def given(self) -> int:
        """The most that the engine was ever given, as a position in what it is fed with: it has replayed no more than
        that. 0 until it was first given all that there was."""

    @property
    def checkpoints(self) -> int:
        """How often the writer may have changed from where a crash of it is recovered."""

    async def open(self) -> None:
        """Before the engine's start."""

    async def take(self, flush: Flush) -> None:
        """The next flush of the log. Returns when there is room for another one."""

    def replayed(self) -> Replayed:
        """How far the engine is."""

    async def wait_failed(self) -> AuroraError:
        """Returns why it can follow no further, and is to be opened anew; else never."""

    async def close(self) -> None:
        """After the engine's end."""


class Engine(Protocol):
    """One engine on one data directory. Methods that wait take a timeout and raise EngineError when it passes."""

    @property
    def install(self) -> EngineInstall:
        """The version in use."""

    @property
    def pid(self) -> int | None:
        """The main process while there is one."""

    @property
    def port(self) -> int:
        """The TCP port clients use; 0 before the start if it is to be chosen."""

    @property
    def socket_dir(self) -> Path:
        """Where sessions on the same machine find it."""

    @property
    def hand_over(self) -> Path | None:
        """The Unix socket on which it takes clients' sockets (interposer/src/intercept_accept.c); None: it takes
        none."""

    @property
    def first_start(self) -> bool:
        """Whether no start on this data directory was ever noted (`note_good_start`) before the present one."""

    @property
    def troubles(self) -> tuple[EngineTrouble, ...]:
        """Of the present run."""

    @property
    def recovering(self) -> str:
        """How far a start is, in words; empty when there is nothing to say."""

    async def start(
        self,
        data_dir: Path,
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        timeout_s: float,
        moved: Callable[[], object] = ...,
        follow: StandbyFeed | None = None,
    ) -> None:
        """Starts as writer, or to follow one, and returns when it accepts statements. After a failure nothing runs.

        A start may take as long as it must: it fails when nothing has moved for `timeout_s`. `moved` is asked what the
        caller knows of: another value than before is a move.
        """

    async def foresee(self, data_dir: Path, bring: Bring, pages_max: int) -> None:
        """Beside a start on `data_dir`, which has nothing yet: has brought what that is going to read, `pages_max`
        pages at most. Nothing depends on it."""

    async def repair(
        self, data_dir: Path, kinds: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], password: str
    ) -> None:
        """Mends what users did to the data directory, before a start. Each of `kinds` can be done again."""

    async def configure(self, parameters: Mapping[str, str], size: InstanceSize | None = None) -> None:
        """Other parameters of the cluster, and another size if one is given: in force at once where that can be, else
        at the next start."""

    async def hold_horizon(self, horizons: Sequence[Horizon], lease_s: float) -> None:
        """Of a writer: keeps what these readers need, for `lease_s` from now on. Raises EngineError."""

    def tell_replicas(
        self, rows: Sequence[ReplicaRow], regions: Sequence[RegionRow] = (), writer_at: tuple[str, int] | None = None
    ) -> None:
        """What sessions are told of their cluster from now on; of a global one, of its regions too. `writer_at`: of one
        that follows, where its sessions have their writes run; None: nowhere."""

    async def write_back(self, *, timeout_s: float) -> None:
        """Of a writer that serves: writes what its caches hold and its files do not, so that an end in order, or a
        recovery, has little left to do. Raises EngineError if it does not get to the end of it in time."""

    async def complete_databases(self) -> None:
        """Of a writer: puts what sessions are promised into databases of earlier versions.

        After a start, and not in its way. Raises EngineError.
        """

    async def note_good_start(self) -> None:
        """Keeps what this run was configured with, as the last that worked. After a start, and not in its way."""

    async def stop(self, mode: StopMode, *, timeout_s: float) -> EngineExit | None:
        """Ends every process and says how the run ended, None if there was none.

        A mode that does not finish within the timeout is followed by the next rougher one.
        """

    async def wait_exit(self) -> EngineExit:
        """Waits, without a limit, until the engine has ended for whatever reason and all its processes are gone."""

    async def check(self, *, timeout_s: float) -> None:
        """Whether it is alive. Needs no login, so nothing that users can change or lock closes it."""

    async def give_password(self, password: str, *, timeout_s: float) -> None:
        """Makes `password` the superuser's if it has none yet; one that its owner set stays."""

    def volatile_patterns(self, *, follows: bool = False) -> tuple[VolatilePattern, ...]:
        """What may stay out of the volume; `follows`: on the mount of an engine that follows its writer."""

    async def succession(self, data_dir: Path, table: FileTable) -> Succession:
        """What it takes for this engine, which follows and has replayed all of a volume whose file table is `table`, to
        go on as its writer. Raises EngineError if it cannot."""

    async def promote(self, *, timeout_s: float) -> None:
        """It follows nobody any more; returns when it takes writes. Its sessions live on. Raises EngineError."""

    async def make_feed(self, data_dir: Path, table: FileTable, lsn: int, read: ReadFile) -> StandbyFeed:
        """What this engine is fed with when it is started to follow, on `data_dir`, a mount of the volume as of `lsn`,
        where its file table was `table`. Raises EngineError, or UsageError if the engine cannot follow."""

    def dsn(self, passfile: Path, *, host: str | None = None, port: int | None = None) -> str:
        """The connection string for clients, without a secret in it."""


class Image(Protocol):
    """A prepared data directory, from which new clusters are made."""

    def new_cluster(self) -> Iterator[Record]:
        """The records that make an empty volume a new cluster with an identity of its own; `Adapter.last_file` is the
        last of its files."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a statement gave: the names of its columns, its rows as plain values, and how many were touched."""

    columns: list[str]
    rows: list[list[Any]]
    count: int


class Difference(NamedTuple):
    """A row that `came`, `went` or `changed` (which is `kind`) between two moments; rows are JSON objects."""

    kind: str
    before: str | None
    after: str | None


class Client(Protocol):
    """How people and programs on this machine speak to an engine."""

    def dsn(self, addresses: Sequence[tuple[str, int]], passfile: Path, *, writable: bool = False) -> str:
        """A connection string without a secret in it, for one address or several; `writable`: of these, the one that
        takes writes."""

    def way_in(self, dsn: str, socket_dir: Path | None, port: int) -> str:
        """The DSN; or, when the password in the pass file is not the superuser's any more, one that leads to the
        engine's own socket, where only its account and root get in and nothing is asked."""

    def query(self, dsn: str, statement: str) -> Rows:
        """Runs a statement in a session of its own. Raises AuroraError, in a sentence."""

    def differences(self, before: str, after: str, table: str, database: str) -> Iterator[Difference]:
        """What a table's rows on the server behind one connection string have that those behind another do not: by the
        primary key if both have the same, else as a multiset. Where there is no such table, it has no rows. It takes
        bounded memory. Raises UsageError, AuroraError, in a sentence."""

    def parameters(self, dsn: str, declared: Mapping[str, str], *, everything: bool) -> list[dict[str, str]]:
        """What the server runs with: name, value, default, unit, source ("cluster" for what is `declared` and in force,
        "aurora" for ours) and when a change counts; only what was set, or all."""

    def command_line(
        self, dsn: str, version: str, bin_dir: Path | None, statements: Sequence[str], arguments: Sequence[str]
    ) -> list[str]:
        """The client program for people, one that suits the server's version: path and arguments. With statements, it
        runs them one after the other and ends. Raises ConfigurationError if there is none on this machine."""


class Adapter(Protocol):
    """One engine: all that the rest of the project asks of it.

    `page_bytes`: of its volumes. `eager`: files (patterns) that a mount should have before the start, `soon` those
    that the first sessions will want. `programs`: names of what its processes run. `last_file`: of a new cluster's
    import, so a volume that has it is complete. `version_file`: says in a volume which major version it is of; the path
    is no other engine's. `repairs`: kinds of `Engine.repair`. `read_only_parameters`: with them, nothing is changed.
    `cancel_code`, `refusal`, `keeps_address`: as in endpoint.relay.ClientProtocol. `has_readers`: whether
    its servers can follow a writer; `goes_on_in_place`: whether one that does can go on as the writer (Engine.promote).
    `passfile_suffix`: of the files in which a program of its clients finds a password.
    """

    name: str
    page_bytes: int
    superuser: str
    eager: tuple[str, ...]
    soon: tuple[str, ...]
    programs: tuple[str, ...]
    last_file: bytes
    version_file: bytes
    repairs: tuple[str, ...]
    read_only_parameters: Mapping[str, str]
    client: Client
    cancel_code: int
    refusal: bytes
    keeps_address: bool
    has_readers: bool
    goes_on_in_place: bool
    passfile_suffix: str

    def find(self, version: str | None, bin_dir: Path | None) -> EngineInstall:
        """The installation to use, see the engine's own. Raises ConfigurationError, which says what there is."""

    def stage(self, found: EngineInstall, account: EngineAccount, engines_dir: Path) -> EngineInstall:
        """One that the account can run: `found` itself, or a copy in `engines_dir`. Raises ConfigurationError."""

    def prepare(self, found: EngineInstall, account: EngineAccount, images_dir: Path) -> Image:
        """The prepared data directory, made once. Raises ConfigurationError, EngineError."""

    def make(
        self,
        found: EngineInstall,
        account: EngineAccount,
        run_dir: Path,
        *,
        host: str,
        port: int,
        size: InstanceSize,
        parameters: Mapping[str, str],
        name: str = "",
    ) -> Engine:
        """An engine that can be started once on a data directory. `run_dir`: for its sockets and log. `name`: that its
        sessions know it by."""

    def forwards(self, version: str) -> bool:
        """Whether sessions on an engine that follows can have their writes run by the writer."""

    def check_parameters(self, found: EngineInstall, changes: Mapping[str, str | None]) -> dict[str, str]:
        """What each change of a cluster's parameters needs, "dynamic" or "pending-reboot", by canonical name (None is a
        reset). Raises UsageError for what the engine does not know or take, and for what is not the user's to set."""

    def canonical(self, name: str) -> str:
        """A parameter's name as the engine prints it."""

    def ensure_passfile(self, path: Path) -> str:
        """The superuser's password in the pass file, which is made if it is not there. Raises ConfigurationError."""

    def write_passfile(self, path: Path, password: str) -> None:
        """Puts a pass file with this password in the place of what is there. Raises OSError."""

    def sessions(self, pid: int, below: Sequence[int]) -> int:
        """How many clients an engine serves. `pid`: its main process, `below`: those that this has started."""

    def busy_sessions(self, pid: int, below: Sequence[int]) -> int:
        """How many of them are in the middle of something, a statement or a transaction; all, where that is not
        seen."""

    def slots(self, data_dir: Path) -> int:
        """Replication slots: somebody who may not be there now counts on the log being kept for him, and sent."""

    def forget_run(self, run_dir: Path) -> None:
        """Gives the kernel back what a run held whose end nobody saw to. All of it is gone."""
