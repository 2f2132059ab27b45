"""`make sim`: as many seeds as AURORA_SIM_SEEDS says, on every core."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.sim
@pytest.mark.timeout(0)
def test_many_seeds() -> None:
    seeds, start = os.environ.get("AURORA_SIM_SEEDS") or "2000", os.environ.get("AURORA_SIM_START") or "0"
    command = [sys.executable, "-m", "tests.sim", "--seeds", seeds, "--start", start]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, "seeds failed: see above for how to run each of them again"
