"""Which storage nodes are not well, and since when. Pure: looks in, a book out.

A node that is well for a moment only (it dies again as soon as it was started) is not forgiven: it must have been well
for `SETTLED_S` before the time that it was not counts no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from aurora_ray.control.decide.reconcile import lacking
from aurora_ray.control.model.observed import Ailing, Ailment, NodeSeen

if TYPE_CHECKING:
    from aurora_ray.control.model.state import Fleet

SETTLED_S: Final = 5.0


def ailment(fleet: Fleet, node_id: str, seen: NodeSeen | None) -> Ailment | None:
    """What a node suffers from at this moment."""
    if seen is None or seen.silent:
        return Ailment.UNREACHABLE
    return Ailment.DATA_GONE if lacking(fleet, node_id, seen) - seen.refilling else None


class AilingNodes:
    """`look` is called again and again, with the same clock."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, Ailment], tuple[float, float]] = {}  # since when, and when last seen so

    def look(self, fleet: Fleet, nodes: Mapping[str, NodeSeen], now_s: float) -> dict[str, Ailing]:
        """Every node that is not well now, or was not a moment ago."""
        for node in fleet.nodes:
            found = ailment(fleet, node.node_id, nodes.get(node.node_id))
            if found is not None:
                since_s, _ = self._cases.get((node.node_id, found), (now_s, now_s))
                self._cases[node.node_id, found] = (since_s, now_s)
        self._cases = {case: times for case, times in self._cases.items() if now_s - times[1] <= SETTLED_S}
        # One that suffers from something now does so first of all.
        ordered = sorted(self._cases.items(), key=lambda case: case[1][1])
        return {node_id: Ailing(found, since_s, last_s < now_s) for (node_id, found), (since_s, last_s) in ordered}
