"""Timeouts for machines that are slow or busy; nothing that is measured goes by this.

AURORA_TEST_TIMEOUT_FACTOR multiplies every timeout in the tests. Where more wants to run than there are processors, as
when several runs share a machine, they grow by as much, up to BUSY_FACTOR_MAX: a deadline is there to end what hangs,
and what waits for its turn does not hang.
"""

import os

TIMEOUT_FACTOR = float(os.environ.get("AURORA_TEST_TIMEOUT_FACTOR", "1"))
BUSY_FACTOR_MAX = 8.0
READY_PER_CPU = 2.0  # with so many processes that want to run for each processor, a timeout still is what it says
# The waits within a test end it with a better sentence: the limit of a whole test comes after them.
TEST_FACTOR = 3.0


def scaled(timeout_s: float) -> float:
    """A timeout in seconds for this machine. Give what a quick one needs, generously; never scale what is measured."""
    return timeout_s * TIMEOUT_FACTOR * busy_factor()


def busy_factor() -> float:
    """How much longer things take by now for want of processors, from 1 to BUSY_FACTOR_MAX."""
    ready_per_cpu = os.getloadavg()[0] / (os.cpu_count() or 1)
    return min(max(1.0, ready_per_cpu / READY_PER_CPU), BUSY_FACTOR_MAX)
