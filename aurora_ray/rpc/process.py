"""What a process that serves for long asks of the interpreter."""

from __future__ import annotations

import gc
from typing import Final

# A storage node makes and drops hundreds of thousands of small objects for each layer of log, hardly any of them in
# cycles: looking for cycles as often as by default takes some percent of its time, in pauses of tens of milliseconds.
_THRESHOLDS: Final = (50_000, 20, 100)


def expect_long_service() -> None:
    """Has the cyclic garbage collector look rarely, and never at what is loaded by now. Once a process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
