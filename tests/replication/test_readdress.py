"""The primary's redo in another envelope: the records stay, everything that is of the other region goes."""

from __future__ import annotations

import pytest

from aurora_ray.errors import DivergedError, FencedError
from aurora_ray.log.batch import compress, decode_header, encode_batch, inflate, payload, verify
from aurora_ray.log.flush import Flush, LogEnd
from aurora_ray.log.record import RecordBuilder, page_full
from aurora_ray.replication.readdress import Envelope, readdress, written_s
from aurora_ray.replication.succession import epochs_of

THERE, HERE = b"t" * 16, b"h" * 16


def flush(start: int = 1000, *, epoch: int = 5, content: bytes = b"x") -> Flush:
    builder = RecordBuilder(start)
    for group in (0, 3):
        builder.add(page_full(1, group, content, group=group))
    end, parts = builder.end_lsn, builder.take()
    batches = {
        part.group: compress(
            encode_batch(
                group=part.group,
                volume=THERE,
                epoch=epoch,
                prev_lsn=900,
                flush_start=start,
                flush_end=end,
                time_us=1_234_500_000,
                vdl=start,
                record_count=part.record_count,
                groups=(0, 3),
                records=part.payload,
            )
        )
        for part in parts
    }
    return Flush(start, end, batches)


@pytest.mark.parametrize("content", [b"x", b"ab" * 4000])
def test_records_and_place_stay_and_the_envelope_is_the_copys(content: bytes) -> None:
    ours = flush(content=content)
    end = LogEnd(1000, {0: 1000, 3: 640})
    theirs = readdress(ours, end, Envelope(HERE, epoch=9, vdl=400))
    assert (theirs.start, theirs.end, theirs.groups) == (ours.start, ours.end, ours.groups)
    assert end.lsn == 1000, "it is not submitted yet"
    for group, batch in theirs.batches.items():
        header, before = verify(batch), decode_header(ours.batches[group])
        assert (header.volume, header.epoch, header.vdl, header.prev_lsn) == (HERE, 9, 400, end.tail(group))
        changed = {"volume": THERE, "epoch": 5, "vdl": 1000, "prev_lsn": 900}
        assert header._replace(**changed) == before
        assert payload(inflate(batch)) == payload(inflate(ours.batches[group]))
    assert written_s(theirs) == written_s(ours) == 1234.5


def test_a_flush_that_does_not_follow_is_refused() -> None:
    for lsn in (992, 1008):
        with pytest.raises(DivergedError):
            readdress(flush(), LogEnd(lsn), Envelope(HERE, 9, 0))


def test_what_came_to_the_source_in_a_later_generation_is_no_continuation() -> None:
    later = flush(epoch=epochs_of(17).start)
    with pytest.raises(FencedError):
        readdress(later, LogEnd(1000), Envelope(HERE, epochs_of(16).stop - 1, 0))
    assert readdress(later, LogEnd(1000), Envelope(HERE, epochs_of(17).start + 4, 0)).start == 1000
    assert readdress(flush(), LogEnd(1000), Envelope(HERE, epochs_of(17).start, 0)).start == 1000
