"""What an instance is told when it is opened, and what it tells: plain values that cross Ray calls."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from aurora_ray.backup.manifest import Subject
from aurora_ray.compute.health import HealthRules
from aurora_ray.compute.role import Role
from aurora_ray.engine.base import Horizon
from aurora_ray.engine.sizes import InstanceSize
from aurora_ray.errors import AuroraError
from aurora_ray.log.sizes import GROUPS_MAX
from aurora_ray.replication.succession import epochs_of
from aurora_ray.troubles import Trouble
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec

OPEN_TIMEOUT_S = 120.0  # for sealing and mounting; and how long nothing may move while the engine starts
STOP_TIMEOUT_S = 60.0


class IncarnationPhase(StrEnum):
    """Where one incarnation of an instance stands."""

    SEALING = "sealing"
    INITIALISING = "initialising"
    MOUNTING = "mounting"
    STARTING = "starting"
    AVAILABLE = "available"
    STOPPING = "stopping"
    ENDED = "ended"


class HalfMadeVolumeError(AuroraError):
    """A volume that shall be initialised has content, and that is no complete data directory: an earlier initialisation
    was cut short. Nobody ever served on it. Take a new volume."""

    retryable = True


@dataclass(frozen=True, slots=True)
class InstanceDirs:
    """The directories of one instance on its machine, below the data directory."""

    root: Path

    @property
    def mount(self) -> Path:
        """The engine's data directory: the page cache of the volume."""
        return self.root / "mount"

    @property
    def run(self) -> Path:
        """Sockets, logs, pid files."""
        return self.root / "run"

    @property
    def pid_file(self) -> Path:
        """The engine's process, with its start time."""
        return self.root / "engine.pid"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine an instance runs, as whom, and where prepared things are kept. `bin_dir`: that installation."""

    engine: str
    version: str
    data_dir: Path
    engine_user: str = "aurora-ray"
    bin_dir: Path | None = None

    @property
    def images_dir(self) -> Path:
        """Where prepared data directories are kept."""
        return self.data_dir / "images"


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """Where a backup goes: its place in what lies at `url`. `key_file`: empty if it is not encrypted. `former`: volumes
    that the cluster had before it was rewound, each with until when (Unix time)."""

    url: str
    place: str
    key_file: str
    retention_s: int
    subject: Subject
    former: tuple[tuple[str, float], ...] = ()

    @property
    def digest(self) -> str:
        """Of all of it: whether a backup that runs does what is declared."""
        return hashlib.sha256(repr((self, self.subject.password)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What a volume that is not whole yet is made out of; `lsn`: its end then."""

    url: str
    place: str
    key_file: str
    lsn: int


@dataclass(frozen=True, slots=True)
class CapacityOrder:
    """Serverless capacity, in ACUs: what an incarnation begins with, from what to what it may change, and how much CPU
    goes with one."""

    acu: float
    least: float
    most: float
    cpus_per_acu: float


@dataclass(frozen=True, slots=True)
class CopySource:
    """What a replicator follows, and how far away: the primary's volume, the turns (LSN, generation) of its redo, and
    the secret of its fleet. `first_lsn`: the primary's history begins there. `one_way_s`: simulated, 0 for none.
    """

    region: str
    volume: VolumeSpec
    nodes: tuple[NodeAddress, ...]
    turns: tuple[tuple[int, int], ...]
    secret: str = field(repr=False)
    first_lsn: int = 0
    one_way_s: float = 0.0


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """Everything an instance needs to open its volume and run an engine on it.

    `initialise`: the volume may be new; if it is empty, it gets the engine's prepared data directory first.
    """

    cluster: str
    instance_id: str
    az: str
    volume: VolumeSpec
    nodes: tuple[NodeAddress, ...]
    engine: EngineChoice
    port: int
    superuser_password: str = field(repr=False)
    role: Role = Role.WRITER
    host: str = "127.0.0.1"
    initialise: bool = False
    cache_bytes: int = 0  # 0: by what is free on its disk
    open_timeout_s: float = OPEN_TIMEOUT_S
    stop_timeout_s: float = STOP_TIMEOUT_S
    health: HealthRules = field(default_factory=HealthRules)
    parameters: tuple[tuple[str, str], ...] = ()  # the cluster's
    memory_bytes: int = 0  # of its size, as declared; 0: by what the machine has (see engine.sizes)
    groups_max: int = GROUPS_MAX  # of the volume: it grows no further
    repairs: tuple[str, ...] = ()  # what to mend in the data directory before the start, as `kind:token`
    backup: BackupOrder | None = None  # of one whose role that is
    restore: RestoreOrder | None = None  # of a writer whose volume may not be whole yet
    capacity: CapacityOrder | None = None  # of an instance whose capacity changes while it runs; then it is its size
    turns: tuple[tuple[int, int], ...] = ((0, 0),)  # of the volume, see replication/succession.py
    first_lsn: int = 0  # of a copy of another region's volume: it is begun as of then
    source: CopySource | None = None  # a replicator's
    goes_on: bool = False  # readers go on as the writer in place: each keeps near to that, and a writer helps them
    holds_commits: bool = False  # of a writer: it acknowledges none before it is told until when it may

    @property
    def epochs(self) -> range:
        """Those that whoever writes to the volume may take: of the newest generation that was noted, and no other."""
        return epochs_of(self.turns[-1][1])

    @property
    def dirs(self) -> InstanceDirs:
        """Where the instance keeps its things."""
        return InstanceDirs(self.engine.data_dir / "instances" / self.instance_id)


@dataclass(frozen=True, slots=True)
class Opened:
    """A writer that accepts statements. `stages_s` are the seconds that each stage of opening took; `troubles` what its
    user should know of."""

    epoch: int
    vdl: int
    pid: int
    port: int
    stages_s: dict[str, float]
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an incarnation ended: asked to, or by itself and why. `retryable`: opening it anew may help at once.

    Unix times in ns: `good_at_ns`, when it was last known to be good, and `noticed_ns`, when its end was noticed.
    """

    asked: bool
    reason: str
    retryable: bool = True
    good_at_ns: int = 0
    noticed_ns: int = 0


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """How a copy of another region's volume stands. `following`: it has all pages, and the log follows; `lsn`: up to
    where it is durable, `source_lsn`: the primary is known to be. `heard_ms`: how old that is. `log_bytes`: that came.
    """

    following: bool
    lsn: int
    source_lsn: int
    lag_ms: float
    lag_bytes: int
    heard_ms: float
    p50_ms: float
    p99_ms: float
    log_bytes: int
    extents_done: int
    extents_total: int
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """A look at an instance; numbers are 0 where there is none. `reason`: why it ended, or how far its start is.

    Of a reader, `vdl` is the newest that it knows, `replayed_lsn` up to where its sessions see (both in the volume),
    and `lag_ms` for how long the oldest durable flush that they do not see yet has been known; None of others.
    `unheard_s`: since when no copy of the volume has said anything.
    """

    phase: IncarnationPhase
    epoch: int = 0
    vdl: int = 0
    tail_lsn: int = 0
    pid: int = 0
    port: int = 0
    groups: tuple[int, ...] = ()
    used_bytes: int = 0
    free_bytes: int | None = None
    reason: str = ""
    stats: dict[str, int | float] = field(default_factory=dict)
    placements: tuple[GroupPlacement, ...] = ()  # who holds the groups in truth
    troubles: tuple[Trouble, ...] = ()
    socket_dir: str = ""  # of the engine, for sessions on its machine
    hand_over: str = ""  # its Unix socket for clients' sockets from the endpoint on its machine; empty: it takes none
    declared_memory_bytes: int = 0  # that this incarnation was opened with; 0: none, or a version without sizes
    size: InstanceSize | None = None  # that it has
    repaired: tuple[str, ...] = ()  # the repairs that the opening made
    role: Role = Role.WRITER
    replayed_lsn: int = 0
    lag_ms: float | None = None
    unheard_s: float = 0.0
    horizon: Horizon | None = None  # of a reader's sessions
    volume_id: str = ""  # that this incarnation was opened on; empty: a version that does not say
    described: str = ""  # of a backup: the digest of what it was told
    copy: CopyStatus | None = None  # a replicator's
