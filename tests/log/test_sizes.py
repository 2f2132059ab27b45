"""What Python and C must agree on stands in two places, which agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aurora_ray.log import sizes
from tests.house.source import PACKAGE

HEADER = PACKAGE / "interposer/src/aurora.h"
IN_C = {
    "AR_PAGE_BYTES_MAX": sizes.PAGE_BYTES_MAX,
    "AR_EXTENT_PAGES": sizes.EXTENT_PAGES,
    "AR_NO_GROUP": sizes.NO_GROUP,
    "AR_GROUPS_MAX": sizes.GROUPS_MAX,
}
LIMITS = {"UINT32_MAX": 0xFFFFFFFF}


@pytest.mark.parametrize("name", IN_C)
def test_a_size_is_the_same_in_c(name: str) -> None:
    (value,) = re.findall(rf"^#define {name} (\w+)", Path(HEADER).read_text(encoding="utf-8"), re.MULTILINE)
    assert LIMITS.get(value) or int(value) == IN_C[name]


def test_sizes_stand_in_one_place() -> None:
    """Whoever writes one of these names down again has another number before long."""
    names = "|".join(name for name in vars(sizes) if name.isupper())
    again = re.compile(rf"^(?:{names})\b[^=\n]*= ", re.MULTILINE)
    wrong = [
        f"{path.relative_to(PACKAGE)}: {found}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "sizes.py"
        for found in again.findall(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, wrong


def test_every_page_size_is_a_power_of_two_within_the_limits() -> None:
    assert sizes.PAGE_BYTES_ALLOWED == (512, 1024, 2048, 4096, 8192, 16384)


@pytest.mark.parametrize("size", [0, 256, 1000, 32768])
async def test_other_page_sizes_are_refused(size: int) -> None:
    from uuid import UUID

    from aurora_ray.errors import UsageError
    from aurora_ray.volume.spec import GroupPlacement, VolumeSpec

    with pytest.raises(UsageError, match="page size"):
        VolumeSpec(UUID(int=1), size, 1 << 30, (GroupPlacement(0, ("n1",)),))
