"""The repair of a fleet's file, from what the storage nodes' directories tell while the fleet is stopped."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.bootstrap import CONTROL_GROUP_BYTES, CONTROL_PAGE_SIZE, UNKNOWN_FLEET
from aurora_ray.control.model.state import Fleet, Group, StorageNode, VolumeState, is_control_volume
from aurora_ray.durable import move_file
from aurora_ray.errors import AuroraError, ConfigurationError
from aurora_ray.log.sizes import COPIES
from aurora_ray.storage.node.offline import known_hosts, read_membership

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aurora_ray.log.segment_rules import Membership
    from aurora_ray.regions import Region


@dataclass(frozen=True, slots=True)
class Survey:
    """What the storage nodes' directories on this machine tell. `memberships`: what each copy of the control volume
    says of its members; `hosts`: where nodes last answered, as peers noted it; `problems`: copies that do not open;
    `volume_ids` of control volumes, of which there is one."""

    nodes: tuple[str, ...]
    memberships: Mapping[str, Membership]
    hosts: Mapping[str, str]
    problems: Mapping[str, str]
    volume_ids: tuple[UUID, ...] = ()

    def report(self) -> dict[str, Any]:
        """Plain values, for people."""
        return {
            "storage_nodes": list(self.nodes),
            "with_control_state": sorted(self.memberships),
            "hosts": dict(self.hosts),
            "problems": dict(self.problems),
        }


def survey(data_dir: Path) -> Survey:
    """Looks at every storage node's directory of a fleet that is stopped."""
    memberships: dict[str, Membership] = {}
    hosts: Counter[tuple[str, str]] = Counter()
    problems: dict[str, str] = {}
    volume_ids: set[UUID] = set()
    paths = sorted(path for path in (data_dir / "nodes").glob("*") if (path / "node").exists())
    for path in paths:
        hosts.update(known_hosts(path).items())
        for segment in _control_segments(path):
            volume_ids.add(UUID(segment.parent.name))
            try:
                memberships[path.name] = read_membership(segment)
            except AuroraError as error:
                problems[path.name] = str(error)
    last = {node: host for (node, host), _ in sorted(hosts.items(), key=lambda item: item[1])}
    return Survey(tuple(path.name for path in paths), memberships, last, problems, tuple(sorted(volume_ids)))


def _control_segments(node_dir: Path) -> list[Path]:
    found = []
    for path in sorted((node_dir / "volumes").glob("*/0")):
        with contextlib.suppress(ValueError):
            if is_control_volume(UUID(path.parent.name)) and path.is_dir():
                found.append(path)
    return found


def fleet_of(found: Survey, regions: Mapping[str, Region], region: str | None) -> Fleet:
    """The fleet as far as its file tells. Raises ConfigurationError if the copies do not tell enough."""
    if not found.memberships:
        raise ConfigurationError("no copy of the control volume opens on this machine: no fleet can be told from it")
    if len(found.volume_ids) != 1:
        told = ", ".join(map(str, found.volume_ids))
        raise ConfigurationError(
            f"there are control volumes of several fleets: {told}; each has a directory of its own"
        )
    newest = max(found.memberships.values(), key=lambda held: held.number)
    members = newest.members or _guessed(found)
    if len(members) != COPIES:
        raise ConfigurationError(f"the control volume's members are not known: {', '.join(members)} is not all of them")
    everybody = sorted({*members, *newest.next_members, *found.nodes, *found.hosts})
    nodes = tuple(StorageNode(n, n.rpartition("-")[0], found.hosts.get(n, "")) for n in everybody)
    group = Group(0, members, (*members, *newest.next_members), newest.next_members)
    control = VolumeState(found.volume_ids[0], CONTROL_PAGE_SIZE, CONTROL_GROUP_BYTES, (group,), initialised=True)
    azs = tuple(sorted({node.az for node in nodes}))
    name = region or _region_of(azs, regions)
    return Fleet(UNKNOWN_FLEET, name, azs, nodes, control, revision=1)


def _guessed(found: Survey) -> tuple[str, ...]:
    """Copies of the first kind tell no members as long as these never changed: then all that have it are meant."""
    return tuple(sorted({*found.memberships, *found.problems}))


def _region_of(azs: tuple[str, ...], regions: Mapping[str, Region]) -> str:
    fitting = [name for name, region in regions.items() if set(azs) == set(region.availability_zones)]
    if len(fitting) != 1:
        raise ConfigurationError(f"no region has just the AZs {', '.join(azs)}: name the fleet's with --region")
    return fitting[0]


def write_fleet_file(data_dir: Path, fleet: Fleet) -> Path | None:
    """Puts the file in its place; where the old one was put, if there was one. Raises ConfigurationError."""
    path = data_dir / bootstrap.FILE_NAME
    kept = None
    if path.exists():
        number = next(n for n in range(1, 1000) if not path.with_name(f"{path.name}.damaged-{n}").exists())
        kept = path.with_name(f"{path.name}.damaged-{number}")
        move_file(path, kept)
    bootstrap.save(data_dir, fleet)
    return kept
