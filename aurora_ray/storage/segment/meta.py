"""What a segment remembers about itself besides log and pages: one small value, always written whole."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]

from aurora_ray.errors import UNDECODABLE, ConfigurationError, MalformedError
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.segment_rules import Membership, SegmentEpochs, Truncation
from aurora_ray.log.sizes import PAGE_BYTES_MIN
from aurora_ray.storage.disk.keys import META_KEY, content_of, guarded

# 1: without a number, begins with the page size, of 512 at least; no lineage. 2: nothing after the lineage. An older
# format gives way to the newest with the next change.
_FORMAT: Final = 3


def _upgraded(fields: list[Any]) -> list[Any]:
    """`fields` of any format, in that of today as far as it is known."""
    if fields[0] >= PAGE_BYTES_MIN:
        fields = [2, *fields, ROOT]
    return [3, *fields[1:], 0, False, AS_CONFIGURED] if fields[0] == 2 else fields


class Layer(NamedTuple):
    """A coalesced stretch of log: it ends at the batch `end_lsn`, written at `time_us`, and was `log_bytes` long."""

    end_lsn: int
    time_us: int
    log_bytes: int


class Retention(NamedTuple):
    """For how long, and up to how much log a segment, history is kept; zeros: as the node is configured."""

    seconds: int = 0
    log_bytes: int = 0


AS_CONFIGURED: Final = Retention()


@dataclass(slots=True)
class SegmentMeta:
    """Epochs, durable end, and how far the background got. Never changed: a change is a new value, in force once it
    is written (`Segment.commit`; `tests/storage/test_supervised.py` looks that nothing assigns to a field).

    Page versions exist at `floor_lsn` and at each layer's end; the log is kept from `floor_lsn` on. `floor_time_us`:
    when the batch that ends at the floor was written, 0 if that is not known. `unswept`: beyond `coalesced_lsn` there
    may be page versions that never happened here, which have to go before the next layer (`storage/pages/sweeping.py`).
    """

    page_size: int
    epochs: SegmentEpochs = field(default_factory=SegmentEpochs)
    vdl: int = 0
    floor_lsn: int = 0
    layers: tuple[Layer, ...] = ()
    lineage: Lineage = ROOT
    floor_time_us: int = 0
    unswept: bool = False
    retention: Retention = AS_CONFIGURED

    @property
    def coalesced_lsn(self) -> int:
        """Everything up to here is in page versions."""
        return self.layers[-1].end_lsn if self.layers else self.floor_lsn

    def pack(self) -> bytes:
        """As msgpack, with a CRC."""
        fields = (
            _FORMAT,
            self.page_size,
            self.epochs.membership,
            self.epochs.promised_epoch,
            self.epochs.owner,
            self.epochs.installed_epoch,
            [astuple(cut) if cut.first else (cut.epoch, cut.lsn) for cut in self.epochs.truncations],
            self.vdl,
            self.floor_lsn,
            self.layers,
            self.lineage,
            self.floor_time_us,
            self.unswept,
            self.retention,
        )
        return guarded(META_KEY, bytes(msgpack.packb(fields)))

    @classmethod
    def unpack(cls, data: bytes) -> SegmentMeta:
        """What `pack` packed, or an older version of it. Raises MalformedError, ConfigurationError for a newer one."""
        try:
            number, *fields = _upgraded(msgpack.unpackb(content_of(META_KEY, data)))
            if number > _FORMAT:
                raise ConfigurationError(
                    f"a segment's metadata has format {number}, this version knows {_FORMAT}: run what wrote it"
                )
            (
                page_size,
                (number, members, next_members),
                *epochs,
                vdl,
                floor,
                layers,
                lineage,
                floor_us,
                unswept,
                kept,
            ) = fields
            promised, owner, installed, cuts = epochs
            history = tuple(Truncation(*cut) for cut in cuts)
            membership = Membership(number, tuple(members), tuple(next_members))
            return cls(
                page_size,
                SegmentEpochs(promised, owner, installed, history, membership),
                vdl,
                floor,
                tuple(Layer(*layer) for layer in layers),
                Lineage(*lineage),
                floor_us,
                unswept,
                Retention(*kept),
            )
        except (*UNDECODABLE, msgpack.UnpackException) as error:
            raise MalformedError(f"a segment's metadata cannot be read: {error}") from error
