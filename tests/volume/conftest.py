from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.volume.cluster import Cluster, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as six:
        yield six


@pytest.fixture
async def two_groups(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path, groups=2) as six:
        yield six
