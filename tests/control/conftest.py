from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.control.local_runtime import LocalRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[LocalRuntime]:
    local = LocalRuntime(tmp_path)
    yield local
    await local.close()
