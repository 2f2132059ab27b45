"""Keys of what goes on in the control plane: of one key one thing goes on at a time, and failures are counted by it.

Names of clusters, instances, nodes and AZs are users' and may be the same, so a key says what its name is a name of.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Final, NewType
from uuid import UUID

Key = NewType("Key", str)
"""Made by `key` alone."""


@unique
class Kind(StrEnum):
    """What a key's name is a name of, and what goes on with it."""

    NODE = "node"
    PEERS = "peers"
    SEGMENTS = "segments"
    DROP = "drop"
    REMOVE = "remove"
    REPLACEMENT = "replacement"
    MEMBERS = "members"
    CONTROL = "control"
    INSTANCE = "instance"
    KILL = "kill"
    TELL = "tell"
    GROW = "grow"
    ADD_GROUP = "add-group"
    INITIALISED = "initialised"
    REPAIRED = "repaired"
    CLUSTER = "cluster"
    GRAVEYARD = "graveyard"
    RETENTION = "retention"
    PAST = "past"
    ENDPOINTS = "endpoints"
    MOVE_ENDPOINT = "move-endpoint"
    LOOK_AT_NODE = "look-at-node"
    LOOK_AT_INSTANCE = "look-at-instance"
    REPLICAS = "replicas"
    SCALE = "scale"
    DRAIN = "drain"
    CAPACITY = "capacity"
    PAUSE = "pause"
    USAGE = "usage"
    LOOK_AT_POOLS = "look-at-pools"
    LOOK_AT_ENDPOINTS = "look-at-endpoints"
    REGION = "region"  # what a cluster's region decides of its part of a global cluster
    TELL_SOURCE = "tell-source"
    LOOK_AT_REGION = "look-at-region"
    COMMITS = "commits"  # until when they are acknowledged


def key(kind: Kind, name: str | UUID = "") -> Key:
    """The key of that kind; no two kinds share any."""
    return Key(f"{kind}:{name}" if name else str(kind))


assert not any(":" in kind for kind in Kind), "a kind must end at the first colon"  # noqa: S101

NODE_PREFIX: Final = f"{Kind.NODE}:"
