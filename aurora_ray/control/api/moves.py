"""Where data may lie, asked at every place where it could move (replication/residency.py).

Whoever is about to move data asks first, which leaves a line in the audit log (report/audit.py) whatever the answer is.
Within a region nothing is asked: clones, readers and rewinds stay there, and clones have the policy too.
`tests/control/crash/test_residency.py` has the table of all calls that there are, and of what each does to data.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.control.report import audit
from aurora_ray.errors import UsageError
from aurora_ray.regions import load_regions
from aurora_ray.replication.residency import Policy, Purpose, judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aurora_ray.control.model.runtime import ControlConfig
    from aurora_ray.control.model.state import DBCluster
    from aurora_ray.regions import Region

UNDECLARED: Final = "a place that nobody has named"


def require(
    config: ControlConfig, policy: Policy, subject: str, purpose: Purpose, moves: Iterable[tuple[str, str]]
) -> None:
    """Raises ResidencyError if the policy forbids one of the moves (from region, to region or to a place that is none).
    Of those, and of what it allows, there is a line in the audit log then. ConfigurationError if there can be none."""
    if not policy.restricts:
        return
    known = known_regions(config)
    verdicts = [judge(policy, subject, purpose, source, known.get(to, to)) for source, to in moves]
    audit.note(config.data_dir, verdicts)
    for verdict in verdicts:
        verdict.require()


def require_place(config: ControlConfig, cluster: DBCluster, region: str, location: str) -> str:
    """Of a backup of the cluster: where it lies, as said. Raises UsageError for no region, ResidencyError."""
    if location and location not in known_regions(config):
        raise UsageError(f"no region file knows {location!r}: --location names the region in which the backup lies")
    require(config, cluster.residency, cluster.name, Purpose.BACKUP, [(region, location or UNDECLARED)])
    return location


def require_quiet(config: ControlConfig, policy: Policy, subject: str, region: str) -> None:
    """Raises ResidencyError if this fleet's traces and metrics go where the policy lets nothing go."""
    if config.exports_to is not None:
        require(config, policy, subject, Purpose.DIAGNOSTICS, [(region, config.exports_to or UNDECLARED)])


def known_regions(config: ControlConfig) -> Mapping[str, Region]:
    """By name. Raises ConfigurationError."""
    return load_regions(Path(config.regions_dir) if config.regions_dir else None)
