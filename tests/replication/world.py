"""Regions of a global cluster as a simulation: who may write where, who follows whom, and what is put aside.

A volume is one register here, with the epoch that it has promised: how six copies make one is simulated in `tests/sim`.
What is real are the decisions: generations, the epochs that they allow, and up to where two copies are the same.
Knowledge travels when it likes: regions believe what they were told last, and do as they are told by people.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from aurora_ray.replication.succession import (
    Succession,
    common_lsn,
    epochs_of,
    generation_of,
    next_generation,
)

BUGS = (
    "ends_alone",  # a copy is cut to the lower end of the two, whoever wrote what
    "turns_alone",  # ... or to where the followed one's last turn began
    "no_slots",  # two regions can be promoted to the same generation
    "no_limit",  # whoever opens takes the next epoch, whatever generation was promised
    "note_late",  # what a copy holds is noted after the first append
    "any_flush",  # a replicator copies what came to its source in a later generation, too
)


@dataclass(frozen=True)
class Redo:
    """A flush: `token` is what it says, `epoch` of whoever appended it to this copy."""

    token: int
    epoch: int


@dataclass
class Region:
    slot: int
    promised: int = 0
    log: list[Redo] = field(default_factory=list)  # the LSN is the index of the next
    held: Succession = field(default_factory=Succession)  # noted in the region's control state
    believes: int = 0  # the slot of the region that it takes for the primary
    succession: Succession = field(default_factory=Succession)  # ... and what it was told of it
    aside: list[list[Redo]] = field(default_factory=list)

    def open(self, epochs: range) -> int | None:
        """An epoch for who opens it; None if a later generation has it."""
        epoch = max(epochs.start, self.promised + 1)
        if epoch >= epochs.stop:
            return None
        self.promised = epoch
        return epoch


@dataclass
class Writer:
    region: Region
    epoch: int


@dataclass
class Copier:
    source: Region
    target: Region
    epoch: int
    succession: Succession
    noted: bool = False


class World:
    """One run. `check` raises AssertionError when a promise is broken."""

    def __init__(self, seed: int, bug: str = "") -> None:
        self.random = random.Random(seed)
        self.bug = bug
        self.regions = [Region(slot) for slot in range(3)]
        self.writers: list[Writer] = []
        self.copiers: list[Copier] = []
        self.wanted: list[tuple[Region, Region, Succession]] = []
        self.acknowledged: dict[int, int] = {}  # token -> generation
        self._token = 0

    def run(self, steps: int) -> None:
        """So many events, then peace."""
        events = [self.write, self.write, self.copy, self.copy, self.copy, self.start_writer, self.tell]
        events += [self.ask_copier, self.start_copier]
        rare = [self.promote, self.end_somebody]
        for _ in range(steps):
            self.random.choice(rare if self.random.random() < 0.06 else events)()
            self.check()
        self.settle()

    # ---- events

    def write(self) -> None:
        if self.writers:
            writer = self.random.choice(self.writers)
            if writer.epoch != writer.region.promised:
                self.writers.remove(writer)  # fenced
                return
            self._token += 1
            writer.region.log.append(Redo(self._token, writer.epoch))
            self.acknowledged[self._token] = generation_of(writer.epoch)

    def start_writer(self) -> None:
        """A region opens its writer if it takes itself for the primary."""
        region = self.random.choice(self.regions)
        if region.believes == region.slot:
            epoch = region.open(self.epochs(region.held.generation))
            if epoch is not None:
                self.writers.append(Writer(region, epoch))

    def ask_copier(self) -> None:
        """A region wants a replicator, by what it knows now; when it comes to open the copy, that may be old."""
        region = self.random.choice(self.regions)
        if region.believes != region.slot:
            self.wanted.append((region, self.regions[region.believes], region.succession))

    def start_copier(self) -> None:
        if self.wanted:
            self.follow(*self.wanted.pop(self.random.randrange(len(self.wanted))))

    def follow(self, region: Region, source: Region, told: Succession) -> None:
        epoch = region.open(self.epochs(told.generation))
        if epoch is None:
            return
        common = self.common(region, source, told)
        if common < len(region.log):
            latest = max(self.acknowledged[redo.token] for redo in region.log[common:])
            assert latest < told.generation, "what is put aside is of an earlier time than what is followed"
            region.aside.append(region.log[common:])
            del region.log[common:]
            region.held = told
        copier = Copier(source, region, epoch, told)
        if self.bug != "note_late":
            self.note(copier)
        self.copiers.append(copier)

    def copy(self) -> None:
        if self.copiers:
            copier = self.random.choice(self.copiers)
            self.copy_one(copier)

    def copy_one(self, copier: Copier) -> bool:
        source, target = copier.source, copier.target
        if copier.epoch != target.promised:
            self.copiers.remove(copier)  # fenced
            return False
        at = len(target.log)
        if at >= len(source.log):
            return False
        redo = source.log[at]
        if self.bug != "any_flush" and generation_of(redo.epoch) > copier.succession.generation:
            self.copiers.remove(copier)
            return False
        target.log.append(Redo(redo.token, copier.epoch))
        if self.random.random() < 0.5:
            self.note(copier)
        return True

    def promote(self) -> None:
        region = self.random.choice(self.regions)
        slot = 0 if self.bug == "no_slots" else region.slot
        generation = next_generation(max(region.held.generation, region.succession.generation), slot)
        epoch = region.open(self.epochs(generation))
        if epoch is not None:
            region.held = region.held.promoted(len(region.log), generation)
            region.believes, region.succession = region.slot, region.held
            self.writers.append(Writer(region, epoch))

    def tell(self) -> None:
        """A region hears what another one knows; the higher generation counts."""
        ear, mouth = self.random.sample(self.regions, 2)
        self.hear(ear, mouth)

    def hear(self, ear: Region, mouth: Region) -> None:
        told = mouth.held if mouth.believes == mouth.slot else mouth.succession
        known = ear.held if ear.believes == ear.slot else ear.succession
        if told.generation > known.generation:
            ear.believes, ear.succession = mouth.believes, told

    def end_somebody(self) -> None:
        for some in (self.writers, self.copiers):
            if some and self.random.random() < 0.5:
                some.pop(self.random.randrange(len(some)))

    # ---- decisions, as they are or with a bug

    def epochs(self, generation: int) -> range:
        allowed = epochs_of(generation)
        return range(allowed.start, 1 << 62) if self.bug == "no_limit" else allowed

    def common(self, region: Region, source: Region, told: Succession) -> int:
        end = len(region.log)
        if self.bug == "ends_alone":
            return min(end, len(source.log))
        if self.bug == "turns_alone":
            newer = [turn.lsn for turn in told.turns if turn.generation > region.held.generation]
            return min([end, *newer])
        return common_lsn(region.held, end, told)

    @staticmethod
    def note(copier: Copier) -> None:
        if not copier.noted:
            copier.noted = True
            copier.target.held = copier.succession

    # ---- what must hold

    def check(self) -> None:
        for copier in self.copiers:
            source, target = copier.source, copier.target
            if copier.epoch != target.promised or source.held.generation != copier.succession.generation:
                continue  # replaced, or what it follows is no primary of its generation any more
            if source.held != copier.succession:
                continue
            theirs = [redo.token for redo in source.log[: len(target.log)]]
            assert [redo.token for redo in target.log] == theirs, "a copy is a prefix of the primary"
        for number, token in enumerate(self.acknowledged, 1):
            if number == token and self.random.random() < 0.02:
                assert self.kept(token), f"redo {token} is nowhere any more"

    def kept(self, token: int) -> bool:
        logs = [region.log for region in self.regions] + [tail for region in self.regions for tail in region.aside]
        return any(redo.token == token for log in logs for redo in log)

    def settle(self) -> None:
        """Everybody hears of everybody; all follow the highest generation: then all are the same."""
        for _ in range(3):
            for ear in self.regions:
                for mouth in self.regions:
                    if ear is not mouth:
                        self.hear(ear, mouth)
        primaries = [region for region in self.regions if region.believes == region.slot]
        assert len(primaries) == 1, f"one primary is left, not {[region.slot for region in primaries]}"
        self.copiers.clear()
        for region in self.regions:
            if region is not primaries[0]:
                self.follow(region, primaries[0], region.succession)
        for copier in tuple(self.copiers):
            while self.copy_one(copier):
                pass
        tokens = [redo.token for redo in primaries[0].log]
        for region in self.regions:
            assert [redo.token for redo in region.log] == tokens, f"region {region.slot} differs in the end"
        for token in self.acknowledged:
            assert self.kept(token), f"redo {token} is nowhere any more"
