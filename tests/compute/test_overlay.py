"""When a reader's mount is made anew."""

import pytest

from aurora_ray.compute.overlay import HELD_BYTES_MAX, outgrown, wait_outgrown

MIB = 1 << 20


@pytest.mark.parametrize(
    ("cached", "held", "why"),
    [
        (150 * MIB, 0, None),
        (200 * MIB, HELD_BYTES_MAX, None),
        (200 * MIB + 1, 0, "overlay has grown to 200 MiB"),
        (0, HELD_BYTES_MAX + 1, "32 GiB of log"),
    ],
)
def test_a_mount_is_made_anew_when_overlay_or_history_pass_their_bound(cached: int, held: int, why: str | None) -> None:
    found = outgrown(cached_bytes=cached, cache_bytes=100 * MIB, held_bytes=held)
    assert found is None if why is None else why in (found or "")


async def test_growth_is_noticed() -> None:
    sizes = iter((100, 199, 201))
    why = await wait_outgrown(lambda: (next(sizes) * MIB, 100 * MIB, 0), every_s=0)
    assert "201 MiB" in why
    assert next(sizes, None) is None
