"""A short run of each; `make fuzz` is the long one."""

import asyncio

import pytest

from tests.fuzz.calls import _run
from tests.fuzz.run import GROWTH_BYTES_MAX, fuzz, peak_of
from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.allowed_logs(".*")
SECONDS = 0.4


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_only_typed_errors_come_out(target: Target) -> None:
    fed, _ = fuzz(target, SECONDS, seed=1)
    assert fed > 10
    assert peak_of(target, 10, seed=2) < GROWTH_BYTES_MAX


async def test_changed_calls_are_refused_or_served() -> None:
    made, _ = await asyncio.wait_for(_run(2 * SECONDS, seed=1), 30)
    assert made > 10
