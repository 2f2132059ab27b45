"""The bootstrap file `<data_dir>/fleet.toml`: what the control plane must know before it can read its own state.

The declared state lives in a volume on the storage nodes; to start those, one must know which there are. That little,
and nothing else, is kept beside them: the fleet's identity, its region and AZs, the storage nodes with the machine each
is pinned to, and which of them hold the control volume. Whenever one of these changes in the declared state, the file
follows. It is written whole, to a temporary file that is synced and renamed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

from aurora_ray.control.model import CONTROL_VOLUME_ID, Fleet, Group, StorageNode, VolumeState
from aurora_ray.control.placement import default_nodes, place_group
from aurora_ray.durable import replace_file
from aurora_ray.errors import ConfigurationError, UsageError

FILE_NAME = "fleet.toml"
CONTROL_PAGE_SIZE = 8192
CONTROL_GROUP_BYTES = 1 << 30

_HEADER = "# aurora-ray: the storage nodes of this fleet. Written by `aurora`; do not edit while it runs.\n"


def new_fleet(region: str, azs: Sequence[str]) -> Fleet:
    """A fleet that does not exist yet: two nodes in each AZ, the control volume on six of them."""
    nodes = default_nodes(azs)
    group = place_group(0, azs, nodes, ())
    control = VolumeState(CONTROL_VOLUME_ID, CONTROL_PAGE_SIZE, CONTROL_GROUP_BYTES, (group,), initialised=True)
    return Fleet(uuid4(), region, tuple(azs), nodes, control)


def exists(data_dir: Path) -> bool:
    """Whether a fleet lives in this data directory."""
    return (data_dir / FILE_NAME).exists()


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
            int(volume["page_size"]),
            int(volume["group_bytes"]),
            (group,),
            initialised=True,
        )
        azs = tuple(str(az) for az in document["azs"])
        return Fleet(UUID(document["fleet_id"]), str(document["region"]), azs, nodes, control)
    except (tomllib.TOMLDecodeError, KeyError, ValueError, TypeError, AttributeError, UsageError) as error:
        raise ConfigurationError(f"{path} is damaged ({error}); restore it from a copy.") from error


def save(data_dir: Path, fleet: Fleet) -> None:
    """Writes the file, durably, if its content changes. Raises ConfigurationError."""
    path = data_dir / FILE_NAME
    text = render(fleet)
    try:
        if path.exists() and path.read_text() == text:
            return
        replace_file(path, text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error


def render(fleet: Fleet) -> str:
    """The file's text. JSON strings, numbers and arrays of strings are also TOML."""
    control = fleet.control_volume
    group = control.groups[0]
    lines = [
        _HEADER,
        f"fleet_id = {json.dumps(str(fleet.fleet_id))}",
        f"region = {json.dumps(fleet.region)}",
        f"azs = {json.dumps(list(fleet.azs))}",
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
    return "\n".join(lines) + "\n"
