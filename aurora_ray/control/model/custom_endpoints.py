"""Custom endpoints of a cluster, as RDS has them: a name and a port of their own, for some of its instances."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from aurora_ray.compute.role import Role
from aurora_ray.errors import UsageError

CLUSTER: Final = "cluster"  # the endpoint that leads to the writer
READER: Final = "reader"  # the one that leads to the readers
CUSTOM_ENDPOINTS_MAX: Final = 5  # of a cluster
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_TAKEN: Final = (CLUSTER, READER, "instances")  # that a report has beside them


class CustomKind(StrEnum):
    """In which roles instances are led to."""

    READER = "reader"
    ANY = "any"


def custom_kind(word: str) -> CustomKind:
    """The kind of that name. Raises UsageError."""
    if word not in tuple(CustomKind):
        raise UsageError(f"{word!r} is no kind of endpoint: choose {' or '.join(CustomKind)}")
    return CustomKind(word)


@dataclass(frozen=True, slots=True)
class CustomEndpoint:
    """Leads to its `members` (a static list); without any, to all instances but the `excluded`, new ones among them."""

    name: str
    port: int
    kind: CustomKind = CustomKind.READER
    members: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _TAKEN:
            raise UsageError(
                f"{self.name!r} is no name for an endpoint: lower-case letters, digits and dashes, a letter first, and "
                f"not {', '.join(_TAKEN)}"
            )
        if self.members and self.excluded:
            raise UsageError("an endpoint has a list of its instances, or of those that are not, and never both")

    def leads_to(self, instance_id: str, role: Role) -> bool:
        """Whether sessions may go to that instance while it has that role."""
        listed = instance_id in self.members if self.members else instance_id not in self.excluded
        return listed and (self.kind is CustomKind.ANY or role.traits.reads)

    def report(self, instance_ids: Collection[str]) -> dict[str, Any]:
        """Plain values, for JSON. `instance_ids`: that the cluster has. A list stays as it was written when one of its
        instances is removed, and no later one has that name; `gone` are those names."""
        return {
            "name": self.name,
            "kind": str(self.kind),
            "members": list(self.members),
            "excluded": list(self.excluded),
            "gone": [each for each in (*self.members, *self.excluded) if each not in instance_ids],
        }


def with_endpoint(known: tuple[CustomEndpoint, ...], endpoint: CustomEndpoint) -> tuple[CustomEndpoint, ...]:
    """One more of a cluster's. Raises UsageError for a name that there is already, and for one too many."""
    if any(each.name == endpoint.name for each in known):
        raise UsageError(f"the cluster has an endpoint {endpoint.name!r} already: delete that first")
    if len(known) >= CUSTOM_ENDPOINTS_MAX:
        raise UsageError(f"a cluster can have {CUSTOM_ENDPOINTS_MAX} custom endpoints")
    return (*known, endpoint)


def endpoint_of(known: tuple[CustomEndpoint, ...], name: str) -> CustomEndpoint:
    """The one of that name. Raises UsageError."""
    for endpoint in known:
        if endpoint.name == name:
            return endpoint
    there = ", ".join(endpoint.name for endpoint in known) or "none"
    raise UsageError(f"the cluster has no custom endpoint {name!r} (there is: {there})")


def custom_from_plain(plain: dict[str, Any]) -> CustomEndpoint:
    """From the declared state: what this version knows of it."""
    known = {each.name: plain[each.name] for each in fields(CustomEndpoint) if each.name in plain}
    lists = {name: tuple(known.get(name, ())) for name in ("members", "excluded")}
    return CustomEndpoint(**{**known, **lists, "kind": CustomKind(known["kind"])})
