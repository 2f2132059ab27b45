"""How far a copy of a segment from its peers is, for whoever asks the node."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aurora_ray.storage.v1 import storage_pb2 as pb


@dataclass
class CopyProgress:
    """How far a copy is. Times on the monotonic clock."""

    started_s: float
    bytes_total: int = 0
    bytes_copied: int = 0
    ended_s: float | None = None
    sources: tuple[str, ...] = ()

    def message(self) -> pb.CopyProgress:
        """For State."""
        elapsed_s = (time.monotonic() if self.ended_s is None else self.ended_s) - self.started_s
        return pb.CopyProgress(
            running=self.ended_s is None,
            bytes_copied=self.bytes_copied,
            bytes_total=max(self.bytes_total, self.bytes_copied) if self.ended_s is None else self.bytes_copied,
            mb_per_s=self.bytes_copied / 1e6 / max(elapsed_s, 1e-6),
            sources=self.sources,
        )
