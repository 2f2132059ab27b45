"""Regions: where they are, their availability zones, whose law holds there, and how far it is to the others.

One TOML file per region in `regions/`, named after it, so that a region is added by adding files, not code. Distances
are one-way network times, not measured but derived, so that tests behave alike wherever they run:

    one_way_ms = ROUTE_STRETCH * great_circle_km / FIBRE_KM_PER_MS, rounded to 0.1 ms

Light in fibre makes 200 km in a millisecond; cables are longer than the great circle, by 1.2 to 1.8 between the
regions of the large clouds, 1.4 in the middle. What is measured in a real deployment may be written instead: a file may
say any number, `load_regions` only insists that both ends say the same.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ray.errors import ConfigurationError

AVAILABILITY_ZONES = 3  # two copies in each of three: the quorums are made for exactly this
EARTH_RADIUS_KM = 6371.0
FIBRE_KM_PER_MS = 200.0
ROUTE_STRETCH = 1.4

_KEYS = {
    "name": str,
    "title": str,
    "country": str,
    "jurisdiction": str,
    "latitude_deg": float,
    "longitude_deg": float,
    "availability_zones": list,
    "one_way_ms": dict,
}


@dataclass(frozen=True, slots=True)
class Region:
    """One region, as its file describes it."""

    name: str
    title: str
    country: str  # ISO 3166-1, two letters
    jurisdiction: str  # whose data protection law holds: "EU", or the country
    latitude_deg: float
    longitude_deg: float
    availability_zones: tuple[str, ...]
    one_way_ms: Mapping[str, float]  # to every other region, by name

    def distance_ms(self, other: str) -> float:
        """One-way network time to the region named, in milliseconds; 0 to itself."""
        return 0.0 if other == self.name else self.one_way_ms[other]


def great_circle_km(a: Region, b: Region) -> float:
    """The distance over the ground between two regions, by the haversine formula."""
    lat_a, lat_b = math.radians(a.latitude_deg), math.radians(b.latitude_deg)
    half_lat = (lat_b - lat_a) / 2
    half_lon = math.radians(b.longitude_deg - a.longitude_deg) / 2
    h = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(h))


def estimated_one_way_ms(a: Region, b: Region) -> float:
    """The formula above."""
    return round(ROUTE_STRETCH * great_circle_km(a, b) / FIBRE_KM_PER_MS, 1)


def default_directory() -> Path:
    """The directory `regions` beside the package: in a source tree as in an installation."""
    return Path(__file__).resolve().parent.parent / "regions"


def load_regions(directory: Path | None = None) -> dict[str, Region]:
    """All regions of a directory (default: those shipped) by name.

    Raises ConfigurationError, naming the file and the key, if one is malformed or two contradict each other.
    """
    directory = directory or default_directory()
    paths = sorted(directory.glob("*.toml"))
    if not paths:
        raise ConfigurationError(f"No region files (*.toml) in {directory}: set AURORA_REGIONS_DIR to where they are.")
    regions = {region.name: region for region in map(_load_region, paths)}
    for region in regions.values():
        _check_distances(region, regions, directory)
    return regions


def load_region(name: str, directory: Path | None = None) -> Region:
    """One region. Raises ConfigurationError that lists the known ones if there is none of this name."""
    regions = load_regions(directory)
    if name not in regions:
        raise ConfigurationError(f"Unknown region {name!r}: choose one of {', '.join(sorted(regions))}.")
    return regions[name]


def _load_region(path: Path) -> Region:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as a region file: {error}.") from error
    _check_keys(table, path)
    region = Region(
        name=table["name"],
        title=table["title"],
        country=table["country"],
        jurisdiction=table["jurisdiction"],
        latitude_deg=float(table["latitude_deg"]),
        longitude_deg=float(table["longitude_deg"]),
        availability_zones=tuple(table["availability_zones"]),
        one_way_ms=table["one_way_ms"],
    )
    _check_values(region, path)
    return region


def _check_keys(table: dict[str, Any], path: Path) -> None:
    missing, unknown = _KEYS.keys() - table.keys(), table.keys() - _KEYS.keys()
    if missing or unknown:
        found = [f"{key} is missing" for key in sorted(missing)] + [f"{key} is unknown" for key in sorted(unknown)]
        raise ConfigurationError(f"{path}: {', '.join(found)}.")
    for key, kind in _KEYS.items():
        wanted = (int, float) if kind is float else kind
        if not isinstance(table[key], wanted) or isinstance(table[key], bool):
            raise ConfigurationError(f"{path}: {key} must be a {kind.__name__}, not {table[key]!r}.")


def _check_values(region: Region, path: Path) -> None:
    zones = region.availability_zones
    complaints = {
        f"name is {region.name!r}, but the file says {path.stem!r}": region.name != path.stem,
        "country must be two capital letters": not (len(region.country) == 2 and region.country.isupper()),
        "jurisdiction must not be empty": not region.jurisdiction,
        "latitude_deg must lie within -90 and 90": not -90 <= region.latitude_deg <= 90,
        "longitude_deg must lie within -180 and 180": not -180 <= region.longitude_deg <= 180,
        f"availability_zones must be {AVAILABILITY_ZONES} different names": (
            len(zones) != AVAILABILITY_ZONES
            or not all(isinstance(zone, str) and zone for zone in zones)
            or len(set(zones)) != len(zones)
        ),
        "one_way_ms must hold positive numbers": not all(_is_positive(value) for value in region.one_way_ms.values()),
    }
    for complaint, applies in complaints.items():
        if applies:
            raise ConfigurationError(f"{path}: {complaint}.")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _check_distances(region: Region, regions: Mapping[str, Region], directory: Path) -> None:
    path = directory / f"{region.name}.toml"
    others = regions.keys() - {region.name}
    if missing := sorted(others - region.one_way_ms.keys()):
        raise ConfigurationError(f"{path}: one_way_ms lacks {', '.join(missing)}.")
    if unknown := sorted(region.one_way_ms.keys() - others):
        raise ConfigurationError(f"{path}: one_way_ms names {', '.join(unknown)}, for which there is no file.")
    for other in sorted(others):
        there, back = region.one_way_ms[other], regions[other].one_way_ms.get(region.name)
        if back is not None and there != back:
            raise ConfigurationError(f"{path}: one_way_ms to {other} is {there}, but {other}.toml says {back}.")
