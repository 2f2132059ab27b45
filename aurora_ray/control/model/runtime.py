"""What the control plane needs of whatever runs processes. Ray in production; tests run storage nodes in one process.

Two kinds of processes: a storage node, and an instance (an empty process at first, in which a writer is opened, ends
and is opened again). Both can vanish at any moment; `wait_gone` then answers why, and every other call raises
ProcessGoneError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from aurora_ray.compute.health import HealthRules
from aurora_ray.engine.sizes import CPUS_PER_ACU
from aurora_ray.errors import AuroraError, FencedError
from aurora_ray.log.sizes import VOLUME_BYTES_MAX

if TYPE_CHECKING:
    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import EngineChoice, InstanceConfig, InstanceStatus, Opened, Outcome
    from aurora_ray.control.model.state import StorageNode
    from aurora_ray.rpc.partition import Cut


T = TypeVar("T")
SMALL_MEMORY_BYTES = 512 << 20
ADDRESS_FILE = "control.json"  # in the data directory: where the control API is served (api/server.py)


class ProcessGoneError(AuroraError):
    """The process ended; a new one can be started."""

    retryable = True


class NotMadeError(ProcessGoneError):
    """The process ended while it was being made, by an error that another one would meet as well."""

    retryable = False


class NoPlaceError(AuroraError):
    """No machine of the AZ takes the process now."""

    retryable = True


class SupersededError(FencedError):
    """Another control plane has taken over the work of this one. (Any other FencedError speaks of a writer.)"""


@dataclass(frozen=True, slots=True)
class Room:
    """How many ACUs a machine has left, that nobody holds."""

    host: str
    azs: tuple[str, ...]  # that it is in
    acu: float


@dataclass(frozen=True, slots=True)
class Short:
    """Of an instance whose machine has no more: what it `asked` for, what it `holds`, in ACUs, and what the `others`
    have."""

    holds: float
    asked: float
    others: tuple[Room, ...] = ()


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """What the control plane is told when it starts; all of it can be told anew at the next start."""

    data_dir: Path
    region: str
    azs: tuple[str, ...]
    group_bytes: int
    cache_bytes: int
    retention_s: float
    retention_bytes: int
    listen_host: str = "127.0.0.1"
    engine_user: str = "aurora-ray"
    hung_after_s: float = 2.5
    give_up_after_s: float = 30.0
    answer_within_s: float = 0.75
    stuck_after_s: float = 120.0
    metrics_port: int | None = None  # see control.metrics_port
    replace_after_s: float = 300.0
    replace_empty_after_s: float = 10.0
    graveyard_s: float = 24 * 3600.0
    volume_limit_bytes: int = VOLUME_BYTES_MAX
    cpus_per_acu: float = CPUS_PER_ACU
    regions_dir: str = ""  # where regions are described; empty: as shipped
    exports_to: str | None = None  # the region that traces and metrics go to; empty: nobody has said; None: none go
    small: bool = False  # the storage nodes of an AZ share a process, and no instance has one in waiting
    promote_in_place: bool = False  # readers go on as writers, where they can
    fleet_id: str = ""  # whose file must be in the data directory; empty: whatever is there

    @property
    def instance_bytes(self) -> int:
        """Memory of a new instance whose owner named none; 0: see engine.sizes."""
        return SMALL_MEMORY_BYTES if self.small else 0

    @property
    def health_rules(self) -> HealthRules:
        """How patient to be with a writer and with its engine."""
        return HealthRules(
            hung_after_s=self.hung_after_s,
            give_up_after_s=self.give_up_after_s,
            answer_within_s=self.answer_within_s,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "data_dir": str(self.data_dir), "azs": list(self.azs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**values, "data_dir": Path(values["data_dir"]), "azs": tuple(values["azs"])})


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A running storage node."""

    address: str
    pid: int
    host: str


class NodeProcess(Protocol):
    """A storage node's process. In a small fleet others of its AZ are in it: what a signal or a cut does to one, it
    does to all of them."""

    @property
    def info(self) -> NodeInfo:
        """Where it is."""

    async def wait_gone(self) -> str:
        """Waits, without a limit, until the process has ended; why."""

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        """Signals the process and what it started (see compute.signals.send); process ids."""

    async def cut(self, cut: Cut) -> None:
        """Whom the node does not hear from now on."""

    async def stop(self, *, destroy: bool, timeout_s: float) -> None:
        """Ends it in order; with `destroy` its directory goes too."""


class InstanceProcess(Protocol):
    """An instance's process."""

    @property
    def host(self) -> str:
        """The machine that it runs on."""

    @property
    def pid(self) -> int:
        """Its process id there."""

    @property
    def local_pid(self) -> int | None:
        """Its process id, if it runs on our machine."""

    async def wait_gone(self) -> str:
        """Waits, without a limit, until the process has ended; why."""

    async def open(self, config: InstanceConfig) -> Opened:
        """Opens a new incarnation. Raises what the writer raises."""

    async def promote(self, config: InstanceConfig) -> Opened:
        """The open incarnation, a reader, goes on as the writer, see Reader.promote. Where it has done so, says so."""

    async def wait_ended(self) -> Outcome:
        """Waits, without a limit, until the open incarnation, or what goes on in its place, has ended."""

    async def status(self) -> InstanceStatus | None:
        """The current incarnation; None if there never was one."""

    async def do(self, command: Command[T]) -> T:
        """Has the open incarnation carry out a command. Raises what it raises, UsageError if nothing is open."""

    async def metrics(self, timeout_s: float) -> bytes:
        """What the process counts, as Prometheus text."""

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        """Signals the process and what it started (see compute.signals.send); process ids."""

    async def close(self, timeout_s: float) -> None:
        """Ends the incarnation in order; the process stays, for the next one."""

    async def abort(self) -> None:
        """Kills the process, even if it is stopped; does not wait for its end."""

    async def end(self, *, fast: bool, destroy: bool, timeout_s: float, replaced: bool = False) -> None:
        """Ends the incarnation (in order if `fast`, else at once), the process, and with `destroy` its directory.

        `replaced`: another process takes its place at once, so one that is in waiting stays.
        """


class Runtime(Protocol):
    """Starts and finds processes."""

    async def start_node(self, node: StorageNode, config: ControlConfig) -> NodeProcess:
        """Starts a storage node in its AZ (and on its host, if pinned) and waits until it answers."""

    async def find_node(self, node: StorageNode) -> NodeProcess | None:
        """The process of that node, if an earlier control plane started one that still runs."""

    async def wipe_node(self, node: StorageNode, config: ControlConfig) -> None:
        """Removes the directory of a node that does not run. Raises NoPlaceError if its machine is away."""

    async def start_instance(self, instance_id: str, az: str, choice: EngineChoice) -> InstanceProcess:
        """Starts an instance's empty process in an AZ; it answers, and gets its engine ready meanwhile."""

    async def have_spare(self, instance_id: str, az: str, choice: EngineChoice, *, wanted: bool) -> None:
        """Whether a process shall be in waiting for an instance that has settled: made after a while, or ended now."""

    async def ready_instance(self, instance_id: str, az: str, choice: EngineChoice, host: str = "") -> None:
        """Has a process in waiting in an AZ (and on that machine, if one is named), where the instance is going to be
        started soon."""

    async def end_waiting(self) -> None:
        """Ends processes that are in waiting for no instance in particular."""

    async def find_instance(self, instance_id: str) -> InstanceProcess | None:
        """The process of that instance, if one runs: it may have been started without an answer."""

    async def find_instances(self) -> dict[str, InstanceProcess]:
        """Instance processes that an earlier control plane started and that still run."""

    async def held_capacity(self) -> Mapping[str, float]:
        """What instances hold of their machines, in ACUs. Raises NoPlaceError."""

    async def hold_capacity(self, instance_id: str, host: str, acu: float, cpus_per_acu: float) -> float:
        """Has an instance hold so many ACUs of a machine, and of no other; how many it holds then: the machine may have
        no more. Raises NoPlaceError."""

    async def rooms(self, cpus_per_acu: float) -> Sequence[Room]:
        """What the machines have left. Raises NoPlaceError."""
