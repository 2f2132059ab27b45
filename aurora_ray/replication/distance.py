"""The simulated link between two regions, from where they are (`regions/`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.rpc.link import Line, Link

if TYPE_CHECKING:
    from aurora_ray.regions import Region

JITTER: Final = 0.05  # of the one-way time, at most
BYTES_PER_S: Final = 125e6  # 1 Gb/s
STALL_RATE: Final = 0.5  # packets that are lost, of 1,000 messages


def link_between(here: Region, there: Region, seed: int = 0) -> Link | None:
    """As calls from `here` to `there` meet it; none within a region."""
    return link_of(here.distance_ms(there.name) / 1e3, seed)


def link_of(one_way_s: float, seed: int = 0) -> Link | None:
    """A line of that length; none for 0."""
    if not one_way_s:
        return None
    line = Line(one_way_s, JITTER * one_way_s, BYTES_PER_S, STALL_RATE, stall_s=max(0.2, 3 * one_way_s))
    return Link.of(line, seed)
