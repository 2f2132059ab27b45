"""Limits of the system, and names that programs would split."""

import resource
from pathlib import Path

import pytest

from aurora_ray.compute.directories import prepare_data_dir
from aurora_ray.compute.limits import DESCRIPTORS_MIN, raise_descriptor_limit
from aurora_ray.errors import ConfigurationError


@pytest.mark.parametrize(
    ("limits", "raised"),
    [((256, 4096), 4096), ((1024, resource.RLIM_INFINITY), 65536), ((65536, 65536), None), ((-1, -1), None)],
)
def test_the_soft_limit_is_raised_as_far_as_allowed(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised: int | None
) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: done.append(wanted))
    raise_descriptor_limit()
    assert done == ([] if raised is None else [(raised, limits[1])])


def test_too_low_a_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    with pytest.raises(ConfigurationError, match=rf"only 256 files.*needs {DESCRIPTORS_MIN}"):
        raise_descriptor_limit()


@pytest.mark.parametrize("name", ["with blank", "a,b", "a:b", "line\nfeed", "a'b", 'a"b', "a\\b"])
def test_a_directory_whose_name_programs_would_split_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="choose another one with --data-dir"):
        prepare_data_dir(tmp_path / name / "data", passable=False)
    assert not (tmp_path / name).exists()


def test_other_names_are_fine(tmp_path: Path) -> None:
    prepare_data_dir(tmp_path / "ü-%$x?y&z#=+@~()[]{};" / "data", passable=False)
