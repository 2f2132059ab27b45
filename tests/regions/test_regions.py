"""The shipped region files are right, and a wrong one is refused with a sentence that says where to look."""

import shutil
from pathlib import Path

import pytest

from aurora_ray.errors import ConfigurationError
from aurora_ray.regions import (
    AVAILABILITY_ZONES,
    default_directory,
    estimated_one_way_ms,
    great_circle_km,
    load_region,
    load_regions,
)

REGIONS = load_regions()


def test_ten_regions_in_several_jurisdictions() -> None:
    assert len(REGIONS) >= 10
    assert {"us-east-1", "us-west-2", "eu-central-1", "eu-west-1", "af-south-1"} <= REGIONS.keys()
    assert REGIONS["eu-central-1"].jurisdiction == REGIONS["eu-west-1"].jurisdiction == "EU"
    assert len({region.jurisdiction for region in REGIONS.values()}) >= 6


def test_three_zones_each_and_no_zone_twice() -> None:
    zones = [zone for region in REGIONS.values() for zone in region.availability_zones]
    assert len(zones) == len(set(zones)) == AVAILABILITY_ZONES * len(REGIONS)
    assert all(zone.startswith(region.name) for region in REGIONS.values() for zone in region.availability_zones)


def test_distances_follow_the_formula_both_ways() -> None:
    for region in REGIONS.values():
        expected = {o.name: estimated_one_way_ms(region, o) for o in REGIONS.values() if o is not region}
        assert dict(region.one_way_ms) == expected, f"regions/{region.name}.toml"
        assert region.distance_ms(region.name) == 0
        for other in expected:
            assert REGIONS[other].distance_ms(region.name) == region.distance_ms(other)


def test_great_circle_of_known_pairs() -> None:
    dublin_sydney_km = great_circle_km(REGIONS["eu-west-1"], REGIONS["ap-southeast-2"])
    assert dublin_sydney_km == pytest.approx(17_215, rel=0.005)
    assert great_circle_km(REGIONS["us-east-1"], REGIONS["us-east-1"]) == 0


def test_unknown_region_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown region 'mars-1': choose one of af-south-1, .*us-west-2\."):
        load_region("mars-1")
    assert load_region("us-west-2").title == "Oregon"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A directory with two regions that agree with each other."""
    for name, other in (("aa-one-1", "bb-two-1"), ("bb-two-1", "aa-one-1")):
        zones = [f"{name}{letter}" for letter in "abc"]
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\ntitle = "T"\ncountry = "AA"\njurisdiction = "AA"\n'
            "latitude_deg = 1\nlongitude_deg = 2.5\n"
            f"availability_zones = {zones}\n\n[one_way_ms]\n{other} = 12.5\n"
        )
    return tmp_path


def test_a_directory_of_ones_own(two: Path) -> None:
    assert load_regions(two)["aa-one-1"].distance_ms("bb-two-1") == 12.5


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('title = "T"\n', "", "title is missing"),
        ("[one_way_ms]", 'colour = "red"\n[one_way_ms]', "colour is unknown"),
        ("latitude_deg = 1", 'latitude_deg = "1"', "latitude_deg must be a float"),
        ("latitude_deg = 1", "latitude_deg = 91", "latitude_deg must lie within"),
        ("longitude_deg = 2.5", "longitude_deg = true", "longitude_deg must be a float"),
        ('name = "aa-one-1"', 'name = "cc"', "the file says 'aa-one-1'"),
        ('country = "AA"', 'country = "aa"', "two capital letters"),
        ("'aa-one-1b', ", "", "3 different names"),
        ("'aa-one-1b'", "'aa-one-1a'", "3 different names"),
        ("12.5", "0", "positive numbers"),
        ("12.5", "inf", "positive numbers"),
        ("12.5", "13", "bb-two-1.toml says 12.5"),
        ("bb-two-1 = 12.5", "", "one_way_ms lacks bb-two-1"),
        ("bb-two-1 = 12.5", "bb-two-1 = 12.5\ncc = 1", "one_way_ms names cc"),
        ("[one_way_ms]", "[one_way_ms", "cannot be read as a region file"),
    ],
)
def test_a_wrong_file_is_refused(two: Path, old: str, new: str, complaint: str) -> None:
    path = two / "aa-one-1.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        load_regions(two)
    assert str(path) in str(raised.value)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="AURORA_REGIONS_DIR"):
        load_regions(tmp_path)
    shutil.copy(default_directory() / "us-east-1.toml", tmp_path)
    with pytest.raises(ConfigurationError, match="for which there is no file"):
        load_regions(tmp_path)
