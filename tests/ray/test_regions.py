"""Where the fleets of several regions on one machine are found; no process is started."""

from pathlib import Path

import pytest

from aurora_ray.control.model import bootstrap
from aurora_ray.errors import AuroraError, UsageError
from aurora_ray.ray import regions


def make(path: Path, region: str) -> Path:
    path.mkdir(parents=True)
    bootstrap.save(path, bootstrap.new_fleet(region, ("a", "b", "c")))
    return path


def test_each_region_is_found_from_the_first_and_from_the_others(tmp_path: Path) -> None:
    first, elsewhere = make(tmp_path / "first", "us-east-1"), make(tmp_path / "elsewhere", "sa-east-1")
    second = make(first / "regions" / "eu-west-1", "eu-west-1")
    assert regions.directory_for(first, "sa-east-1", elsewhere) == elsewhere
    known = {"us-east-1": first, "eu-west-1": second, "sa-east-1": elsewhere}
    assert regions.directories(first) == known
    assert regions.directories(second) == known
    assert next(iter(regions.directories(second))) == "eu-west-1"
    assert regions.directory_for(second, "ap-south-1", None) == first / "regions" / "ap-south-1"
    assert regions.directory_for(first, "eu-west-1", None) == second
    with pytest.raises(UsageError, match="leave out --region-dir"):
        regions.directory_for(first, "eu-west-1", tmp_path / "other")


def test_nothing_that_does_not_run_is_killed_or_asked(tmp_path: Path) -> None:
    first = make(tmp_path / "first", "us-east-1")
    with pytest.raises(UsageError, match="no region 'mars-1'"):
        regions.kill(first, "mars-1")
    with pytest.raises(UsageError, match="nothing of region us-east-1 runs"):
        regions.kill(first, "us-east-1")
    with pytest.raises(AuroraError, match="is stopped"):
        regions.running(first)
    with pytest.raises(AuroraError, match="does not exist"):
        regions.running(tmp_path / "none")
