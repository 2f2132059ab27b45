"""Several regions on one machine: each is a fleet with a data directory of its own, and they lie beside each other.

The first one's directory has a directory `regions` with one entry for each that was added here: a directory, or a link
to where the user wanted it. So whoever is asked about one finds the others, also when the one that is asked is gone.
What the regions know of each other stands in their own control states; this is for commands alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.compute.directories import make_dir
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.errors import AuroraError, UsageError
from aurora_ray.ray import local as local_ray
from aurora_ray.ray.data_dir import JOINED_NAME, end_leftovers, locked
from aurora_ray.ray.data_dir import REGIONS_NAME as DIR_NAME
from aurora_ray.ray.fleet import Fleet

if TYPE_CHECKING:
    from pathlib import Path


def root_of(data_dir: Path) -> Path:
    """The first region's directory, from any of them that lies below it."""
    above = data_dir.parent.parent
    return above if data_dir.parent.name == DIR_NAME and bootstrap.exists(above) else data_dir


def directories(data_dir: Path) -> dict[str, Path]:
    """By region: the fleets that are known from here, the one asked for first."""
    root = root_of(data_dir)
    found: dict[str, Path] = {}
    below = sorted((root / DIR_NAME).iterdir()) if (root / DIR_NAME).is_dir() else []
    for path in (data_dir, root, *(entry.resolve() for entry in below)):
        fleet = bootstrap.load(path)
        if fleet is not None:
            found.setdefault(fleet.region, path)
    return found


def directory_for(data_dir: Path, region: str, wanted: Path | None) -> Path:
    """Where a region that is to be added lives: where it does already, as wanted, or below the first one.

    Raises UsageError if it lives somewhere else than wanted.
    """
    there = directories(data_dir).get(region)
    if there is not None:
        if wanted is not None and wanted != there:
            raise UsageError(f"region {region} is in {there} already: leave out --region-dir")
        return there
    root = root_of(data_dir)
    entry = root / DIR_NAME / region
    make_dir(entry.parent, root.stat().st_mode & 0o777)  # who may pass through the one may pass through the other
    if wanted is None:
        return entry
    if entry.is_symlink():
        entry.unlink()  # of a fleet that is no more
    entry.symlink_to(wanted)
    return wanted


def running(data_dir: Path, first: str | None = None) -> Fleet:
    """A running fleet among those that are known from here: that of region `first`, else the nearest. Raises what
    finding the nearest one raises, if none runs."""
    found = directories(data_dir)
    order = [found[first]] if first in found else []
    order += [path for path in found.values() if path not in order]
    failure: AuroraError | None = None
    for path in order or [data_dir]:
        try:
            return Fleet.find(path)
        except AuroraError as error:
            failure = failure or error
    assert failure is not None, "there was at least one to look for"  # noqa: S101
    raise failure


def kill(data_dir: Path, region: str) -> tuple[Path, int]:
    """Kills every process of a region's fleet on this machine at once, its control plane and its Ray too; where it is,
    and how many. Nothing brings it back but `aurora up`. Raises UsageError if it is not here, or does not run."""
    found = directories(data_dir)
    if region not in found:
        raise UsageError(f"no region {region!r} is known here; there is {', '.join(found) or 'none'}")
    path = found[region]
    if (path / JOINED_NAME).exists():
        raise UsageError(f"region {region} runs on a Ray cluster of yours: end that")
    with locked(path):
        killed = local_ray.end_processes(path)
        end_leftovers(path)
        (path / ADDRESS_FILE).unlink(missing_ok=True)
    if not killed:
        raise UsageError(f"nothing of region {region} runs in {path}")
    return path, killed
