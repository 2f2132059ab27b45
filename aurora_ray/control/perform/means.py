"""What actions are carried out with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.compute.config import EngineChoice

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.model.keys import Key
    from aurora_ray.control.model.runtime import ControlConfig, NodeProcess
    from aurora_ray.control.model.state import DBCluster
    from aurora_ray.control.observe.pools import Pools
    from aurora_ray.control.observe.processes import Processes
    from aurora_ray.control.observe.regions import Regions
    from aurora_ray.control.report.events import EventLog
    from aurora_ray.volume.spec import NodeAddress

END_TIMEOUT_S: Final = 90.0  # of an incarnation in order


@dataclass(frozen=True, slots=True)
class Means:
    """What actions are carried out with. `cut_off` tells a storage node of the partitions that are in force,
    `notify` says that something changed,
    `open_control` opens the control volume, `runs_for_s` says for how long this control plane has been looking,
    `withdrawn`: see Endpoints; `forget_attempt`: what failed before is tried again at once; `regions` are the other
    regions of global clusters; `save_usage` saves what was counted of what clusters use; `leaves`: an instance is going
    to end, to go on elsewhere, which is an outage that somebody wanted if it is a writer."""

    config: ControlConfig
    declared: Declared
    processes: Processes
    events: EventLog
    say: Callable[[str], None]
    notify: Callable[[], None]
    cut_off: Callable[[str, NodeProcess], Awaitable[None]]
    open_control: Callable[[], Awaitable[None]]
    runs_for_s: Callable[[], float]
    withdrawn: Callable[[DBCluster], AbstractAsyncContextManager[bool]]
    forget_attempt: Callable[[Key], object]
    regions: Regions
    save_usage: Callable[[], Awaitable[None]]
    pools: Pools
    leaves: Callable[[str], None]

    def addresses(self) -> tuple[NodeAddress, ...]:
        """The running storage nodes, for a volume client."""
        return self.processes.addresses(self.declared.fleet.nodes)


def engine_choice(config: ControlConfig, cluster: DBCluster) -> EngineChoice:
    """The engine of a cluster, as its instances are told."""
    return EngineChoice(
        engine=cluster.engine,
        version=cluster.engine_version,
        data_dir=config.data_dir,
        engine_user=config.engine_user,
        bin_dir=Path(cluster.bin_dir) if cluster.bin_dir else None,
    )
