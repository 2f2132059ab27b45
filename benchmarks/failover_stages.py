"""A failover's time cut into stages that follow each other and add up. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Final

REST: Final = "not traced"

# Spans by the stage that they stand for. Where several are open at a moment, the last one named here counts.
OURS: Final[Mapping[str, str]] = {
    "control.PointEndpoints": "endpoint",
    "failover.first_write": "first write",
    "failover.detect": "detect",
    "failover.decide": "decide",
    "control.KillInstance": "kill",
    "control.StartInstance": "process",
    "control.ChangeRole": "end",
    "control.OpenInstance": "ask to open",
    "control.PromoteInstance": "ask to go on",
    "writer.prepare": "prepare",
    "writer.seal": "seal",
    "writer.mount": "mount",
    "writer.engine": "engine",
    "writer.drain": "drain",
    "writer.exchange": "exchange",
    "writer.promote": "promote",
}
STOCK: Final = ("detect", "fence", "promote", "first write")


def exclusive(
    intervals: Iterable[tuple[str, int, int]], stages: Mapping[str, str], begin_ns: int, end_ns: int
) -> dict[str, float]:
    """Seconds by stage from `begin_ns` to `end_ns`, each moment counted once, out of (name, start, end) in ns.

    What no interval of a known name covers is `REST`.
    """
    rank = {name: number for number, name in enumerate(stages)}
    known = [(rank[name], max(start, begin_ns), min(end, end_ns)) for name, start, end in intervals if name in rank]
    edges = sorted({begin_ns, end_ns, *(edge for _, start, end in known if start < end for edge in (start, end))})
    titles = [stages[name] for name in stages]
    seconds: dict[str, float] = {}
    for start, end in itertools.pairwise(edges):
        open_now = [number for number, since, until in known if since <= start and end <= until]
        title = titles[max(open_now)] if open_now else REST
        seconds[title] = seconds.get(title, 0.0) + (end - start) / 1e9
    return {title: round(seconds[title], 4) for title in (*dict.fromkeys(titles), REST) if title in seconds}
