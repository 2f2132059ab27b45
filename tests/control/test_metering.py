"""What clusters use is counted once, whoever counts, whatever ends."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from aurora_ray.control.decide.metering import MARK_EVERY_S, Meter, Reading, SaveUsage
from aurora_ray.control.report.usage import UsageLog, report_usage
from aurora_ray.errors import MalformedError
from tests.control.fleets import running_fleet

FLEET = running_fleet()
CLUSTER = FLEET.clusters[0]
WRITER = CLUSTER.writer().instance_id


@dataclass
class Engine:
    """As an incarnation counts, with the truth beside."""

    life: int
    acu: float
    vdl: int
    acu_s: float = 0.0
    pages: int = 0
    stopped: bool = False

    def goes_on(self, seconds: float, rng: random.Random) -> None:
        if not self.stopped:
            self.acu_s += self.acu * seconds
            self.pages += rng.randrange(100)
            self.vdl += rng.randrange(1000)

    def says(self, now_s: float) -> Reading:
        return Reading(
            now_s, self.life, self.acu, self.acu_s, str(self.life), self.pages, "v", self.vdl, 1000, not self.stopped
        )


class Run:
    """An engine at a time, a control plane at a time, and what shall have been counted."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_s, self.lives, self.vdl = 1000.0, 0, 5000
        self.first_vdl = self.vdl
        self.before_s = 0.0  # ACU-seconds of all lives before
        self.engine: Engine | None = None
        self.meter, self.saved = Meter(), b""
        self.look()

    def look(self) -> None:
        readings = {WRITER: self.engine.says(self.now_s)} if self.engine is not None else {}
        self.meter.look(FLEET, readings, self.now_s)
        if any(isinstance(action, SaveUsage) for action in self.meter.wanted(self.now_s)):
            self.saved = self.meter.pack(self.now_s)

    def pass_(self, seconds: float) -> None:
        if self.engine is not None:
            self.engine.goes_on(seconds, self.rng)
            self.vdl = self.engine.vdl
        self.now_s += seconds

    def begin(self) -> None:
        if self.engine is None or self.engine.stopped:
            self.end()
            self.lives += 1
            self.engine = Engine(self.lives, 0.5 * self.rng.randrange(1, 8), self.vdl)

    def end(self) -> None:
        """Its process is gone, or opens the next; its end is noticed at the next look."""
        if self.engine is not None:
            self.before_s += self.engine.acu_s
            self.engine = None

    def stop(self) -> None:
        if self.engine is not None:
            self.engine.stopped = True

    def scale(self) -> None:
        if self.engine is not None and not self.engine.stopped:
            self.engine.acu = 0.5 * self.rng.randrange(1, 32)
            self.look()

    def control_ends(self) -> None:
        """For a while nobody looks; what is not saved is forgotten."""
        self.pass_(self.rng.uniform(0, 30))
        if self.rng.random() < 0.5:
            self.stop()
        self.meter = Meter()
        self.meter.load(self.saved)
        self.look()

    @property
    def truth(self) -> float:
        return self.before_s + (self.engine.acu_s if self.engine is not None else 0.0)

    def check(self) -> None:
        totals = self.meter.totals("demo")
        assert totals is not None
        assert totals.acu_s == pytest.approx(self.truth, abs=1e-6)
        assert totals.redo_bytes <= self.vdl - self.first_vdl


@pytest.mark.parametrize("seed", range(60))
def test_no_second_is_counted_twice_or_lost(seed: int) -> None:
    run = Run(seed)
    run.pass_(MARK_EVERY_S)
    run.begin()
    run.first_vdl = run.vdl
    run.look()
    for _ in range(300):
        getattr(run, run.rng.choice(("begin", "end", "stop", "scale", "control_ends", "look", "look")))()
        run.look()
        run.check()
        run.pass_(run.rng.uniform(0, 2))
        run.look()
        run.check()
    totals = run.meter.totals("demo")
    assert totals is not None
    assert totals.redo_bytes == run.vdl - run.first_vdl, "by what is durable"


def test_who_is_killed_is_counted_until_that_is_noticed() -> None:
    meter = Meter()
    meter.look(FLEET, {WRITER: Reading(100.0, 1, 2.0, 10.0)}, 100.1)
    meter.look(FLEET, {}, 101.0)
    totals = meter.totals("demo")
    assert totals is not None
    assert totals.acu_s == pytest.approx(10 + 2)
    meter.look(FLEET, {WRITER: Reading(103.0, 1, 2.0, 16.0)}, 103.0)  # it had only been silent
    totals = meter.totals("demo")
    assert totals is not None
    assert totals.acu_s == pytest.approx(16)


def test_what_ended_with_the_control_plane_is_counted_up_to_the_mark() -> None:
    meter, after = Meter(), Meter()
    meter.look(FLEET, {WRITER: Reading(100.0, 1, 2.0, 10.0)}, 100.0)
    after.load(meter.pack(100.0))
    after.look(FLEET, {}, 500.0)
    totals = after.totals("demo")
    assert totals is not None
    assert totals.acu_s == 10


def test_marks_are_saved_at_an_end_and_now_and_then_and_not_while_nothing_happens() -> None:
    meter = Meter()

    def saved(now_s: float) -> bool:
        found = list(meter.wanted(now_s))
        if found:
            meter.pack(now_s)
        return bool(found)

    meter.look(FLEET, {WRITER: Reading(100.0, 1, 2.0, 10.0)}, 100.0)
    assert saved(100.0)
    meter.look(FLEET, {WRITER: Reading(101.0, 1, 2.0, 12.0)}, 101.0)
    assert not saved(101.0)
    assert saved(100.0 + MARK_EVERY_S)
    meter.look(FLEET, {WRITER: Reading(101.0, 1, 2.0, 12.0, serves=False)}, 131.0)
    assert saved(131.0)
    meter.look(FLEET, {}, 900.0)
    assert not saved(900.0)


def test_storage_counts_for_all_the_time_and_a_rewound_volume_goes_on_from_its_end() -> None:
    meter = Meter()
    meter.look(FLEET, {WRITER: Reading(100.0, volume="v", vdl=500, used_bytes=1000)}, 100.0)
    meter.look(FLEET, {}, 110.0)
    meter.look(FLEET, {WRITER: Reading(120.0, volume="rewound", vdl=300, used_bytes=2000)}, 120.0)
    meter.look(FLEET, {WRITER: Reading(121.0, volume="rewound", vdl=350, used_bytes=2000)}, 121.0)
    totals = meter.totals("demo")
    assert totals is not None
    assert (totals.byte_s, totals.redo_bytes) == (1000 * 10 + 2000 * 10 + 2000, 50)


def test_a_cluster_that_is_created_anew_begins_from_nothing() -> None:
    meter = Meter()
    meter.look(FLEET, {WRITER: Reading(100.0, 1, 2.0, 10.0)}, 100.0)
    anew = FLEET.with_cluster(replace(CLUSTER, created_at_s=99.0))
    meter.look(anew, {}, 101.0)
    totals = meter.totals("demo")
    assert totals is not None
    assert (totals.since_s, totals.acu_s) == (101, 0)


@pytest.mark.parametrize(
    "packed", [b"{", b"[]", b'{"format": 2, "accounts": {}}', b'{"format": 1, "accounts": {"a": 1}}']
)
def test_counts_that_cannot_be_read_are_told(packed: bytes) -> None:
    with pytest.raises(MalformedError):
        Meter().load(packed)


def test_what_was_used_since_a_moment_is_told_from_the_last_note_before_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    meter, log = Meter(), UsageLog(tmp_path)
    for minute in range(5):
        at_s = 1000.0 + 60 * minute
        meter.look(FLEET, {WRITER: Reading(at_s, 1, 1.0, 60.0 * minute)}, at_s)
        log.note(FLEET, meter, at_s)
    used = report_usage(CLUSTER, meter, UsageLog(tmp_path), 1100.0, 1240.0)
    assert (used["from"], used["acu_seconds"]) == (1060.0, 180)
    assert report_usage(CLUSTER, meter, log, None, 1240.0)["acu_seconds"] == 240
    assert report_usage(CLUSTER, meter, log, 10.0, 1240.0)["from"] == 1000
