"""What the control plane did and decided, in sentences for people. The newest are kept; each goes to the log too."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Final

_log = logging.getLogger(__name__)

TRAIL_SENTENCES: Final = 500


class Journal:
    """`trail`: (Unix time in seconds, sentence), the oldest first."""

    def __init__(self) -> None:
        self.trail: deque[tuple[float, str]] = deque(maxlen=TRAIL_SENTENCES)

    def say(self, sentence: str) -> None:
        """Notes what happened or was decided."""
        self.trail.append((time.time(), sentence))
        _log.info("%s", sentence)
