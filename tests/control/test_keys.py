"""Names of clusters, instances, nodes and AZs may be the same; what goes on with them is not one thing for that."""

import inspect
from dataclasses import MISSING, fields
from typing import Any
from uuid import UUID

import pytest

from aurora_ray.control.decide import graveyard, reconcile, replacement
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.state import Group
from aurora_ray.control.observe import endpoints, heartbeats
from aurora_ray.volume.spec import GroupPlacement
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import started
from tests.support.polling import poll_until

NAME = "a-1"
VALUES: dict[str, Any] = {
    "UUID": UUID(int=1),
    "Group": Group(0, ("a",)),
    "GroupPlacement": GroupPlacement(0, tuple("abcdef")),
    "int": 0,
    "bool": False,
}


def actions() -> list[Action]:
    """One of each kind, all with the same name."""
    modules = (reconcile, replacement, heartbeats, endpoints, graveyard)
    found = {c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if issubclass(c, Action)} - {Action}
    made = []
    for cls in sorted(found, key=lambda cls: cls.__name__):
        required = [f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        values = {f.name: () if "tuple" in str(f.type) else VALUES.get(str(f.type), NAME) for f in required}
        values = {n: v if n != "addresses" else () for n, v in values.items()}
        made.append(cls(**values))
    return made


def test_keys_of_different_kinds_never_meet_whatever_the_names_are() -> None:
    kinds: dict[Key, set[str]] = {}
    for action in actions():
        kind, _, _ = action.key.partition(":")
        assert kind in list(Kind)
        kinds.setdefault(action.key, set()).add(kind)
    assert all(len(those) == 1 for those in kinds.values())
    assert len({key(kind, NAME) for kind in Kind}) == len(Kind)


@pytest.mark.allowed_logs(r".*")
async def test_a_cluster_named_like_an_az_hides_no_storage_node(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("a", timeout_s=20)
        await running.api.wait_available("a", 20)
        await runtime.nodes["a-1"].server.stop(0)  # its process is still there
        node = running.plane.processes.nodes["a-1"]
        await poll_until(lambda: node.seen.silent, 15, what="it is seen to be silent")
