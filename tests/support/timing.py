"""The one knob for slow machines: AURORA_TEST_TIMEOUT_FACTOR multiplies every timeout in the tests, nothing else."""

import os

TIMEOUT_FACTOR = float(os.environ.get("AURORA_TEST_TIMEOUT_FACTOR", "1"))


def scaled(timeout_s: float) -> float:
    """A timeout in seconds for this machine. Give what a quick one needs, generously; never scale what is measured."""
    return timeout_s * TIMEOUT_FACTOR
