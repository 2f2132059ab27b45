"""A segment: one node's copy of one protection group, and the rules of its log.

The foreground calls `check` and `link` only. `check` decides from a batch's header whether it may be stored and changes
nothing; the caller stores and syncs; `link` then moves the SCL, the end of the chain of backlinks without a gap. A
batch behind a gap is stored all the same and joins the chain when gossip has filled the gap.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aurora_ray.errors import FencedError, MalformedError, StaleSegmentError, UnknownVolumeError
from aurora_ray.log.batch import verify
from aurora_ray.log.segment_rules import AppendVerdict, SegmentEpochs, annulled, doubtful, judge_append
from aurora_ray.storage.disk.damage import Damage, DamagedError
from aurora_ray.storage.disk.keys import CUT_KEY, CUT_PREFIX, CUT_VALUE, LSN_MAX, META_KEY, content_of, lsn_key
from aurora_ray.storage.disk.rocks import WriteFailedError
from aurora_ray.storage.pacing import (
    BUSY_REST,
    OPENING_REST,
    OTHERS_REST,
    STEP_COUNTS_S,
    STEP_S,
    Openings,
    Traffic,
)
from aurora_ray.storage.segment.chains import KnownChains
from aurora_ray.storage.segment.cuts import FileCut
from aurora_ray.storage.segment.leftovers import Leftovers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from aurora_ray.log.batch import BatchHeader
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.storage.disk.rocks import Batch
    from aurora_ray.storage.disk.store import SegmentStore
    from aurora_ray.storage.segment.layers import LayerCache
    from aurora_ray.storage.segment.meta import SegmentMeta

BUSY_FOR_S = 0.5  # after an append: until the next writer has begun to open, if that one was lost
KEEPS_UP_S = 0.5  # after an append
_OWN_SHARE = 1 / 8  # of a fork's pages, in redo: from then on it is tidied like any other segment
URGENT_TAIL_BYTES = 256 << 20  # log that waits to be coalesced: beyond, reads and recovery would feel it


class VdlBox:
    """The highest VDL that any segment of a volume on this node learnt under the history of `epoch`, and who waits."""

    __slots__ = ("_subscribers", "epoch", "on_subscribed", "vdl")

    def __init__(self) -> None:
        self.epoch = 0
        self.vdl = 0
        self._subscribers: set[asyncio.Event] = set()
        self.on_subscribed: set[Callable[[], object]] = set()  # called when the first subscriber comes or the last goes

    @property
    def subscribed(self) -> bool:
        """Whether somebody follows the volume's log here."""
        return bool(self._subscribers)

    def subscribe(self, event: asyncio.Event) -> None:
        """`event` is set whenever the SCL or the VDL of any segment may have moved."""
        self._change(lambda: self._subscribers.add(event))

    def unsubscribe(self, event: asyncio.Event) -> None:
        """The inverse of `subscribe`."""
        self._change(lambda: self._subscribers.discard(event))

    def _change(self, change: Callable[[], None]) -> None:
        before = self.subscribed
        change()
        if self.subscribed != before:
            for listener in tuple(self.on_subscribed):
                listener()

    def wake(self) -> None:
        """Something may have moved."""
        for event in self._subscribers:
            event.set()

    def learn(self, epoch: int, vdl: int) -> None:
        """Takes in what a segment with `epoch` installed knows."""
        if epoch > self.epoch:
            self.epoch, self.vdl = epoch, vdl
        elif epoch == self.epoch and vdl > self.vdl:
            self.vdl = vdl


class Segment:
    """See the module. All methods are synchronous and short; the background lives in other modules.

    What is in memory follows the disk: it changes after the write that makes it true. Where a write fails, or anything
    between it and the change in memory, WriteFailedError is raised, and the segment is to be opened from disk again
    (`Node.note_failure`) before it serves anybody.
    """

    def __init__(
        self,
        volume: bytes,
        group: int,
        store: SegmentStore,
        meta: SegmentMeta,
        box: VdlBox,
        *,
        openings: Openings | None = None,
        traffic: Traffic | None = None,
        report: Callable[[DamagedError], object] = lambda _: None,
        keep: Callable[[Segment, list[bytes]], object] = lambda *_: None,
    ) -> None:
        """`openings` and `traffic`: of the whole node. `report` is told of damage that is found where nobody could be
        answered with an error; `keep` puts batches aside that are about to go because they never happened.
        """
        self.volume, self.group, self.store, self.meta = volume, group, store, meta
        store.owner = (volume, group)
        self.box, self._report, self._keep = box, report, keep
        self._openings, self._traffic = openings or Openings(), traffic or Traffic()
        self._vdl = meta.vdl  # learnt; what is stored may be older
        self.scl = 0
        self.highest_lsn = 0
        self.tail_bytes = 0  # log beyond the last layer, roughly, inflated
        self.last_append_s = 0.0  # on the monotonic clock, as the next; appends by whomever
        self._heard_writer_s = 0.0
        self.background = asyncio.Lock()  # held by whatever changes layers, versions or the store itself
        self.awaited = 0  # how many want `background` at once (`soon`): what is at work there hurries or gives way
        self.gave_way = False  # a layer did, and the next one will not: it would never be made else
        self.repair = asyncio.Lock()  # held by whoever brings in log or a copy from peers
        self.cuts: dict[int, list[FileCut]] = {}
        self.spent_cuts: list[tuple[int, int]] = []  # (file id, LSN) of cuts whose versions are deleted already
        self.chains = KnownChains()  # at the end of the last layer; the background's
        self.leftovers = Leftovers(all_folded=store.folded_lsn() == meta.coalesced_lsn)
        self.layers: LayerCache | None = None
        self.table: FileTable | None = None  # as of the last layer; the background's
        self._pending: dict[int, int] = {}  # prev_lsn -> flush_end of batches behind a gap
        self.closed = False
        self._load_cuts()
        self.rescan()
        # No page version has a higher LSN: layers end where the log is complete, also those that a crash cut short.
        self.versions_lsn = self.highest_lsn

    # ---- the chain

    @property
    def vdl(self) -> int:
        """The highest volume durable LSN known under the installed history."""
        box = self.box
        return max(self._vdl, box.vdl if box.epoch == self.meta.epochs.installed_epoch else 0)

    @property
    def shares_most(self) -> bool:
        """Whether it is a fork to which little was written yet: most of its files are its parent's as well (LSNs count
        bytes of redo). Whatever writes pages anew without need would make them its own."""
        own_bytes = self.highest_lsn - self.meta.lineage.origin_lsn
        return bool(self.meta.lineage.parent) and own_bytes < _OWN_SHARE * self.store.page_bytes

    @property
    def has_gap(self) -> bool:
        """Whether batches wait behind a gap."""
        return bool(self._pending)

    @property
    def keeps_up(self) -> bool:
        """Whether redo comes in from the writer, and none of it is missing."""
        return not self._pending and time.monotonic() - self._heard_writer_s < KEEPS_UP_S

    def check(self, header: BatchHeader, at_lsn: int) -> bool:
        """Whether the batch is new, given that the chain ends at `at_lsn`; False for a duplicate.

        Raises FencedError, StaleSegmentError or MalformedError.
        """
        verdict = judge_append(self.meta.epochs, header.epoch)
        if verdict is not AppendVerdict.ACCEPT:
            raise self._refusal(header.epoch, verdict)
        if header.flush_end <= at_lsn:
            return False
        if header.prev_lsn < at_lsn:
            raise MalformedError(
                f"batch of group {self.group} ending at {header.flush_end} links back to {header.prev_lsn},"
                f" but the chain already ends at {at_lsn}"
            )
        return True

    def _refusal(self, epoch: int, verdict: AppendVerdict) -> FencedError | StaleSegmentError:
        epochs = self.meta.epochs
        if verdict is AppendVerdict.FENCED:
            return FencedError(
                f"fenced: epoch {epoch} of group {self.group} is over, epoch {epochs.promised_epoch} was promised"
            )
        return StaleSegmentError(
            f"stale: group {self.group} has installed epoch {epochs.installed_epoch}"
            f" and promised {epochs.promised_epoch}, the batch is of epoch {epoch}"
        )

    def link(self, header: BatchHeader, *, from_writer: bool = True) -> None:
        """Takes a stored batch into the chain, or keeps it for when the gap before it is filled."""
        end = header.flush_end
        if header.prev_lsn == self.scl:
            self.scl = end
            while self._pending and self.scl in self._pending:
                self.scl = self._pending.pop(self.scl)
        elif header.prev_lsn > self.scl:
            self._pending[header.prev_lsn] = end
        self.highest_lsn = max(self.highest_lsn, end)
        self.tail_bytes += header.payload_bytes
        self.last_append_s = now_s = time.monotonic()
        if from_writer:
            self._heard_writer_s = now_s
            self._traffic.note(self.volume, now_s)
        self.learn_vdl(header.vdl)

    def rests(self) -> int:
        """How many times as long as a step of its work the background keeps out of the way: as commits come in, and
        while an engine starts. One that has fallen too far behind, or has no commits, goes on, but not at the cost of
        other volumes' commits."""
        if self._openings.go_on:
            return OPENING_REST
        now_s = time.monotonic()
        if now_s - self.last_append_s < BUSY_FOR_S and self.tail_bytes < URGENT_TAIL_BYTES:
            return BUSY_REST
        return OTHERS_REST if now_s - self._traffic.of_others_s(self.volume) < BUSY_FOR_S else 0

    def rest_s(self, _: float) -> float:
        """For how long, after a step of what somebody asked for: a peer may wait for its end."""
        return self.rests() * STEP_S

    def merging_rest_s(self, worked_s: float) -> float:
        """The same for what holds `background`, after a step that took `worked_s`. Beside other volumes' commits that
        counts as it was: it may be long, the longer the less CPU there is."""
        if self.awaited:
            return 0.0
        shared = time.monotonic() - self._traffic.of_others_s(self.volume) < BUSY_FOR_S
        return self.rests() * (min(max(worked_s, STEP_S), STEP_COUNTS_S) if shared else STEP_S)

    @property
    def is_busy(self) -> bool:
        """Whether the background should keep out of the way of its own volume's users."""
        return self.rests() > OTHERS_REST

    @asynccontextmanager
    async def soon(self) -> AsyncIterator[None]:
        """`background`, for somebody whom a user waits for."""
        self.awaited += 1
        try:
            await self.background.acquire()
        finally:
            self.awaited -= 1
        try:
            yield
        finally:
            self.background.release()

    def learn_vdl(self, vdl: int) -> None:
        """Raises the VDL and wakes whoever waits for the log to move."""
        if vdl > self._vdl:
            self._vdl = vdl
            self.box.learn(self.meta.epochs.installed_epoch, vdl)
        self.box.wake()

    def rescan(self) -> None:
        """Rebuilds the chain from what is stored."""
        meta = self.meta
        scl = highest_lsn = meta.coalesced_lsn
        pending: dict[int, int] = {}
        tail_bytes, vdl = 0, self._vdl
        for header in self._headers(scl):
            highest_lsn = header.flush_end
            tail_bytes += header.payload_bytes
            vdl = max(vdl, header.vdl)
            if header.prev_lsn == scl:
                scl = header.flush_end
            elif header.prev_lsn > scl:
                pending[header.prev_lsn] = header.flush_end
        while scl in pending:
            scl = pending.pop(scl)
        assert meta.floor_lsn <= meta.coalesced_lsn <= scl <= highest_lsn  # noqa: S101 - else acknowledged log is hidden
        self.scl, self.highest_lsn, self._pending = scl, highest_lsn, pending
        self.tail_bytes, self._vdl = tail_bytes, vdl
        self.box.learn(meta.epochs.installed_epoch, vdl)

    def _headers(self, after_lsn: int) -> Iterator[BatchHeader]:
        """Of the sound batches stored behind `after_lsn`. A damaged one is reported, and as good as missing."""
        key = (self.volume, self.group)
        entries = self.store.log_entries(after_lsn, LSN_MAX)
        while True:
            try:
                lsn, batch = next(entries)
            except StopIteration:
                return
            except DamagedError as error:
                self._report(error)
                return
            try:
                yield verify(batch)
            except MalformedError as error:
                self._report(DamagedError(key, Damage("log", lsn), str(error)))

    # ---- epochs

    def promise(self, epochs: SegmentEpochs) -> None:
        """Keeps what `segment_rules.promise` decided, durably. Raises WriteFailedError."""
        assert epochs.promised_epoch >= self.meta.epochs.promised_epoch  # noqa: S101 - a promise is never taken back
        self.commit(epochs=epochs)

    def take_over(self, epochs: SegmentEpochs, vdl: int) -> None:
        """Keeps what `segment_rules` allowed to install or adopt, durably, and what is known to be durable with it.

        Raises WriteFailedError.
        """
        held = self.meta.epochs
        if (epochs.installed_epoch, epochs.truncations) != (held.installed_epoch, held.truncations):
            self.install(epochs, vdl)
            return
        if epochs != held:
            self.promise(epochs)
        if vdl > self.vdl:
            self.learn_vdl(vdl)

    def install(self, epochs: SegmentEpochs, vdl: int) -> None:
        """Adopts the history that `segment_rules` allowed, durably: annulled batches go, and then the chain is built
        anew. Raises WriteFailedError.

        Only what lies above the VDL or above a truncation that is new here can be among them: the others have been
        applied to all that is stored. To look through the whole tail would make every opening wait.
        """
        held = self.meta.epochs
        assert epochs.installed_epoch >= held.installed_epoch  # noqa: S101 - histories only move on
        assert epochs.promised_epoch >= held.promised_epoch  # noqa: S101 - and promises are kept
        with self._whole():
            new = [cut.lsn for cut in epochs.truncations if cut not in held.truncations]
            gone = [
                header.flush_end
                for header in self._headers(max(self.meta.coalesced_lsn, min([self.vdl, *new])))
                if annulled(epochs.truncations, header.epoch, header.flush_end)
                or doubtful(epochs.truncations, held.installed_epoch, self.vdl, header.flush_end)
            ]
            self._keep_tail(gone)
            changes = self.store.batch()
            for lsn in gone:
                changes.delete("log", lsn_key(lsn))
            self.commit(changes, epochs=epochs, vdl=max(self.vdl, vdl))
            self._heard_writer_s = 0.0  # another one
            if gone:
                self.rescan()
                if self.layers is not None:
                    self.layers.forget_tail()
            self.box.learn(epochs.installed_epoch, self._vdl)
            self.learn_vdl(vdl)

    def _keep_tail(self, lsns: list[int]) -> None:
        """Has a copy of batches put aside that never happened: they may help whoever asks why. Of no other use."""
        if lsns:
            batches = [batch for lsn in lsns for batch in self.store.log_batches(lsn - 1, lsn)]
            self._keep(self, batches)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Whatever fails in here may leave memory and disk apart. Raises WriteFailedError for it."""
        try:
            yield
        except (WriteFailedError, UnknownVolumeError):  # of which the latter: dropped or replaced, so nothing is apart
            raise
        except Exception as error:
            raise WriteFailedError((self.volume, self.group), error) from error

    # ---- what is stored

    def commit(self, changes: Batch | None = None, **fields: Any) -> None:
        """Writes `changes` together with the metadata, in which `fields` are replaced, in one synced write. Only then
        are the fields in force. Raises WriteFailedError.
        """
        meta = replace(self.meta, **{"vdl": self.vdl, **fields})
        assert meta.floor_lsn >= self.meta.floor_lsn  # noqa: S101 - what is collected does not come back
        if changes is None:
            changes = self.store.batch()
        with self._whole():
            changes.put("default", META_KEY, meta.pack())
            changes.write_synced()
        self.meta = meta

    def _load_cuts(self) -> None:
        for key, value in self.store.scan("default", CUT_PREFIX, CUT_PREFIX + b"\xff" * 17):
            file_id, lsn = CUT_KEY.unpack_from(key, len(CUT_PREFIX))
            new_size, dropped = CUT_VALUE.unpack(content_of(key, value))
            self.cuts.setdefault(file_id, []).append(FileCut(lsn, new_size, bool(dropped)))

    def close(self) -> None:
        """Lets go of the directory and of everyone who waits."""
        self.closed = True
        self.box.wake()
        self.store.close()
