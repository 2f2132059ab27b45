"""The bootstrap file `<data_dir>/fleet.toml`: what the control plane must know before it can read its own state.

The declared state lives in a volume on the storage nodes; to start those, one must know which there are. That little,
and nothing else, is kept beside them: the fleet's identity, its region and AZs, the storage nodes with the machine each
is pinned to, which of them hold the control volume, whether a state was ever saved there, and policies of residency.
Whenever one of these changes in the declared state, the file follows.

A fleet is made once, by `aurora up`, where there is no sign of an older one (`found_or_new`). From then on the file is
required: without it nobody starts storage nodes, which would be empty ones under the old names.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

from aurora_ray.control.model.placement import default_nodes, place_group
from aurora_ray.control.model.state import Fleet, Group, StorageNode, VolumeState, control_volume_id
from aurora_ray.durable import replace_file
from aurora_ray.errors import UNDECODABLE, ConfigurationError, UsageError
from aurora_ray.replication.residency import Policy

FILE_NAME = "fleet.toml"
CONTROL_PAGE_SIZE = 8192
CONTROL_GROUP_BYTES = 1 << 30
UNKNOWN_FLEET = UUID(int=0)  # in a file that was made anew: the control state tells which it is
SIGNS = ("nodes", "instances", "passfiles")

_HEADER = "# aurora-ray: the storage nodes of this fleet. Written by `aurora`; do not edit while it runs.\n"


def new_fleet(region: str, azs: Sequence[str]) -> Fleet:
    """A fleet that does not exist yet: two nodes in each AZ, the control volume on six of them."""
    nodes = default_nodes(azs)
    group = place_group(0, azs, nodes, ())
    fleet_id = uuid4()
    volume_id = control_volume_id(fleet_id)
    control = VolumeState(volume_id, CONTROL_PAGE_SIZE, CONTROL_GROUP_BYTES, (group,), initialised=True)
    return Fleet(fleet_id, region, tuple(azs), nodes, control)


def exists(data_dir: Path) -> bool:
    """Whether a fleet lives in this data directory."""
    return (data_dir / FILE_NAME).exists()


def signs(data_dir: Path) -> list[str]:
    """What is there that only a fleet leaves behind, as paths; the fleet's file not among them."""
    found: list[str] = []
    for name in SIGNS:
        with contextlib.suppress(OSError):
            found += sorted(str(path) for path in (data_dir / name).iterdir())
    return found


def found_or_new(data_dir: Path, region: str, azs: Sequence[str], fleet_id: str = "") -> Fleet:
    """The fleet of the file; a new one if there is none and no sign of any. With `fleet_id` only that one will do.

    Raises ConfigurationError: it never takes the place of a fleet that was there before.
    """
    fleet = load(data_dir)
    if fleet is not None:
        if fleet_id not in ("", str(UNKNOWN_FLEET), str(fleet.fleet_id)):
            raise ConfigurationError(
                f"{data_dir / FILE_NAME} is that of fleet {fleet.fleet_id}, not of {fleet_id}, which was to be started"
            )
        return fleet
    require_no_signs(data_dir)
    if fleet_id:
        raise ConfigurationError(
            f"there is no {data_dir / FILE_NAME} on this machine: run `aurora up` where the file of fleet {fleet_id} is"
        )
    return new_fleet(region, azs)


def require_no_signs(data_dir: Path) -> None:
    """Raises ConfigurationError if a fleet was here whose file is gone."""
    left = signs(data_dir)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ConfigurationError(
            f"{data_dir / FILE_NAME} is missing, but {left[0]}{more} tell of a fleet that was here: no new one is made "
            "in its place; restore the file from a copy, or have it made anew with `aurora repair fleet`"
        )


def load(data_dir: Path) -> Fleet | None:
    """The fleet as far as the file knows it: without clusters. None if there is no file. Raises ConfigurationError."""
    path = data_dir / FILE_NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    try:
        document = tomllib.loads(text)
        nodes = tuple(StorageNode(str(n["id"]), str(n["az"]), str(n.get("host", ""))) for n in document["nodes"])
        volume = document["control_volume"]
        members, created_on, following = (
            tuple(map(str, volume.get(key, ()))) for key in ("members", "created_on", "next_members")
        )
        group = Group(0, members, created_on, following)
        _ = group.placement  # raises UsageError for what cannot be
        control = VolumeState(
            UUID(volume["id"]),
            _whole(volume["page_size"]),
            _whole(volume["group_bytes"]),
            (group,),
            initialised=True,
        )
        azs = tuple(str(az) for az in document["azs"])
        revision = 1 if document.get("has_state", False) else 0  # the true one is in the control volume
        return Fleet(UUID(document["fleet_id"]), str(document["region"]), azs, nodes, control, revision=revision)
    except (*UNDECODABLE, UsageError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({error}): restore it from a copy, or have it made anew with `aurora repair fleet`"
        ) from error


def policies(data_dir: Path) -> list[Policy]:
    """The policies of residency of the fleet's clusters: whoever starts it keeps to them. Raises ConfigurationError."""
    path = data_dir / FILE_NAME
    try:
        return [Policy.from_dict(each) for each in tomllib.loads(path.read_text()).get("residency", ())]
    except FileNotFoundError:
        return []
    except (OSError, *UNDECODABLE) as error:
        raise ConfigurationError(f"{path} is damaged ({error}): restore it from a copy") from error


def _whole(value: object) -> int:
    """A number of the file as a count. Raises ValueError for all but a positive integer: `int` would take 1.5."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{value!r} is not a positive whole number")
    return value


def save(data_dir: Path, fleet: Fleet) -> None:
    """Writes the file, durably, if its content changes. Raises ConfigurationError."""
    path = data_dir / FILE_NAME
    # Before the state is loaded nobody knows of clusters: their policies stay as they stand.
    unknown = fleet.revision <= 1 and not fleet.clusters
    text = render(fleet, policies(data_dir) if unknown else ())
    try:
        if path.exists() and path.read_text() == text:
            return
        replace_file(path, text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error


def render(fleet: Fleet, more: Iterable[Policy] = ()) -> str:
    """The file's text. JSON strings, numbers and arrays of strings are also TOML."""
    control = fleet.control_volume
    group = control.groups[0]
    lines = [
        _HEADER,
        f"fleet_id = {json.dumps(str(fleet.fleet_id))}",
        f"region = {json.dumps(fleet.region)}",
        f"azs = {json.dumps(list(fleet.azs))}",
        f"has_state = {json.dumps(fleet.revision > 0)}",
        "",
        "[control_volume]",
        f"id = {json.dumps(str(control.volume_id))}",
        f"page_size = {control.page_size}",
        f"group_bytes = {control.group_bytes}",
        f"members = {json.dumps(list(group.node_ids))}",
        f"created_on = {json.dumps(sorted(group.created_on))}",
    ]
    if group.next_node_ids:
        lines.append(f"next_members = {json.dumps(list(group.next_node_ids))}")
    for node in fleet.nodes:
        lines += ["", "[[nodes]]", f"id = {json.dumps(node.node_id)}", f"az = {json.dumps(node.az)}"]
        if node.host:
            lines.append(f"host = {json.dumps(node.host)}")
    clusters = (*fleet.clusters, *(deleted.cluster for deleted in fleet.deleted))
    found = {*more, *(cluster.residency for cluster in clusters if cluster.residency.restricts)}
    for policy in sorted(found, key=str):
        lines += ["", "[[residency]]", *(f"{key} = {json.dumps(value)}" for key, value in policy.to_dict().items())]
    return "\n".join(lines) + "\n"
