"""Recovery's two phases on one node, and the state it decides from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.errors import FencedError, MalformedError
from aurora_ray.log.batch import verify
from aurora_ray.log.segment_rules import Membership, Truncation, install, promise
from aurora_ray.storage.disk.damage import Damage, DamagedError
from aurora_ray.storage.disk.keys import LSN_MAX
from aurora_ray.storage.segment import places
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from aurora_ray.storage.node.volume import NodeVolume
    from aurora_ray.storage.segment.segment import Segment


def seal(volume: NodeVolume, request: pb.SealRequest) -> pb.SealReply:
    """Promises the epoch for all of the volume's segments, or for none.

    Raises DamagedError if the tail of one cannot be told: to a recovery, a batch that is left out has never been here.
    """
    segments = volume.segments.values()
    promised = [promise(segment.meta.epochs, request.epoch, request.owner) for segment in segments]
    if None in promised:
        highest = max(segment.meta.epochs.promised_epoch for segment in segments)
        return pb.SealReply(promised=False, promised_epoch=highest)
    for segment, epochs in zip(segments, promised, strict=True):
        if epochs is not None:
            segment.promise(epochs)
    states = [segment_state(segment, with_tail=True) for segment in segments]
    return pb.SealReply(promised=True, promised_epoch=request.epoch, segments=states)


def truncate(volume: NodeVolume, request: pb.TruncateRequest) -> pb.TruncateReply:
    """Installs the history that the epoch's owner decided. Raises FencedError, nothing changed."""
    segments = volume.segments.values()
    history = [Truncation(cut.epoch, cut.lsn, cut.first) for cut in request.truncations]
    members = {
        each.group: Membership(each.number, tuple(each.members), tuple(each.next_members)) for each in request.members
    }
    decided = [
        (segment, install(segment.meta.epochs, request.epoch, request.owner, history, members.get(segment.group)))
        for segment in segments
    ]
    for segment, epochs in decided:
        if epochs is None:
            raise FencedError(
                f"fenced: group {segment.group} has promised epoch {segment.meta.epochs.promised_epoch}"
                f" and cannot install epoch {request.epoch} for this owner"
            )
    for segment, epochs in decided:
        assert epochs is not None  # noqa: S101 - checked above
        segment.take_over(epochs, request.vdl)
    return pb.TruncateReply(segments=[segment_state(segment) for segment in segments])


def segment_state(segment: Segment, *, with_tail: bool = False) -> pb.SegmentState:
    """What the segment has."""
    meta = segment.meta
    vdl = segment.vdl
    tail = _tail(segment, vdl) if with_tail else []
    return pb.SegmentState(
        group=segment.group,
        promised_epoch=meta.epochs.promised_epoch,
        installed_epoch=meta.epochs.installed_epoch,
        truncations=[pb.Truncation(epoch=t.epoch, lsn=t.lsn, first=t.first) for t in meta.epochs.truncations],
        scl=segment.scl,
        vdl=vdl,
        floor_lsn=meta.floor_lsn,
        highest_lsn=segment.highest_lsn,
        tail=tail,
        log_bytes=segment.tail_bytes + sum(layer.log_bytes for layer in meta.layers),
        coalesced_lsn=meta.coalesced_lsn,
        members=meta.epochs.membership.members,
        next_members=meta.epochs.membership.next_members,
        members_number=meta.epochs.membership.number,
        last_time_us=places.last_time_us(segment) if with_tail else 0,
    )


def _tail(segment: Segment, vdl: int) -> list[pb.BatchInfo]:
    headers = []
    for lsn, batch in segment.store.log_entries(vdl, LSN_MAX):
        try:
            headers.append(verify(batch))
        except MalformedError as error:
            raise DamagedError((segment.volume, segment.group), Damage("log", lsn), str(error)) from error
    return [
        pb.BatchInfo(
            epoch=header.epoch,
            prev_lsn=header.prev_lsn,
            flush_start=header.flush_start,
            flush_end=header.flush_end,
            flush_groups=header.groups,
        )
        for header in headers
    ]
