"""What a segment remembers about itself besides log and pages: one small value, always written whole."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import NamedTuple

import msgpack  # type: ignore[import-untyped]

from aurora_ray.errors import MalformedError
from aurora_ray.log.segment_rules import Membership, SegmentEpochs, Truncation
from aurora_ray.storage.disk.keys import META_KEY, content_of, guarded


class Layer(NamedTuple):
    """A coalesced stretch of log: it ends at the batch `end_lsn`, written at `time_us`, and was `log_bytes` long."""

    end_lsn: int
    time_us: int
    log_bytes: int


@dataclass(slots=True)
class SegmentMeta:
    """Epochs, durable end, and how far the background got. Never changed: a change is a new value, in force once it
    is written (`Segment.commit`; `tests/storage/test_supervised.py` looks that nothing assigns to a field).

    Page versions exist at `floor_lsn` and at each layer's end; the log is kept from `floor_lsn` on.
    """

    page_size: int
    epochs: SegmentEpochs = field(default_factory=SegmentEpochs)
    vdl: int = 0
    floor_lsn: int = 0
    layers: tuple[Layer, ...] = ()

    @property
    def coalesced_lsn(self) -> int:
        """Everything up to here is in page versions."""
        return self.layers[-1].end_lsn if self.layers else self.floor_lsn

    def pack(self) -> bytes:
        """As msgpack, with a CRC."""
        fields = (
            self.page_size,
            self.epochs.membership,
            self.epochs.promised_epoch,
            self.epochs.owner,
            self.epochs.installed_epoch,
            [astuple(cut) if cut.first else (cut.epoch, cut.lsn) for cut in self.epochs.truncations],
            self.vdl,
            self.floor_lsn,
            self.layers,
        )
        return guarded(META_KEY, bytes(msgpack.packb(fields)))

    @classmethod
    def unpack(cls, data: bytes) -> SegmentMeta:
        """What `pack` packed. Raises MalformedError."""
        try:
            fields = msgpack.unpackb(content_of(META_KEY, data))
            page_size, (number, members, next_members), promised, owner, installed, cuts, vdl, floor, layers = fields
            history = tuple(Truncation(*cut) for cut in cuts)
            membership = Membership(number, tuple(members), tuple(next_members))
            return cls(
                page_size,
                SegmentEpochs(promised, owner, installed, history, membership),
                vdl,
                floor,
                tuple(Layer(*layer) for layer in layers),
            )
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise MalformedError(f"a segment's metadata cannot be read: {error}") from error
