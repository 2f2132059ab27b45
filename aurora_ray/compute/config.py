"""What an instance is told when it is opened, and what it tells: plain values that cross Ray calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from aurora_ray.compute.health import HealthRules
from aurora_ray.compute.role import Role
from aurora_ray.engine.sizes import InstanceSize
from aurora_ray.errors import AuroraError
from aurora_ray.troubles import Trouble
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec

OPEN_TIMEOUT_S = 120.0  # for sealing and mounting; and how long nothing may move while the engine starts
STOP_TIMEOUT_S = 60.0


class WriterPhase(StrEnum):
    """Where one incarnation of a writer stands."""

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
class WriterConfig:
    """Everything a writer needs to open its volume and run an engine on it.

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
    repairs: tuple[str, ...] = ()  # what to mend in the data directory before the start, as `kind:token`

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
class WriterStatus:
    """A look at a writer; numbers are 0 where there is none. `reason`: why it ended, or how far its start is."""

    phase: WriterPhase
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
    declared_memory_bytes: int = 0  # that this incarnation was opened with; 0: none, or a version without sizes
    size: InstanceSize | None = None  # that it has
    repaired: tuple[str, ...] = ()  # the repairs that the opening made
