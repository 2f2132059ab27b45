"""Is it hung, or only slow? A pure decision about something that is looked at again and again.

It serves twice: a writer looks at its engine, and the control plane at a writer's process. Each look says whether there
was an answer, and what moved meanwhile: the VDL and the CPU time. `Health.look` says what to make of it.

**The rule.** Hung is only what, at the same time,

1. gave no answer to `failures` looks in a row,
2. gave none for at least `hung_after_s`, the time that does not count (below) left out,
3. did not move in that time: neither the VDL nor the CPU time advanced. What is alive and starved on
   a busy machine moves, if little, and is given time; a process that is stopped by a signal (state T) can do nothing
   itself, so the traffic of those that it started before does not excuse it.

**What is stopped by a signal** and stays so for `stopped_after_s` is hung without more ado: no load of the machine does
that, so there is nothing to be patient about, except that whoever stopped it may let it go on.

What moves its VDL works, and is left alone however long it does not answer. What only uses the CPU and answers nothing
for `give_up_after_s` is called hung as well: it is going round in circles.

**What does not count.** A storage stall (redo waits for a write quorum) is not the fault of whoever waits: while it
lasts, time stands still and nothing is counted. And whoever looks may have been delayed itself: a look that came late
by more than `late_s` proves nothing, so the delay is taken off the time, and the look is no failure.

No clock and no I/O in here: `now_s` is any monotonic time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What one look led to."""

    GOOD = "good"
    EXCUSED = "excused"  # no answer, and not its fault
    SUSPECT = "suspect"  # no answer, and not long enough
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class HealthRules:
    """How patient to be. `look_every_s` is how often to look; an answer may take `answer_within_s`."""

    look_every_s: float = 0.5
    answer_within_s: float = 0.75
    failures: int = 3
    hung_after_s: float = 2.5
    give_up_after_s: float = 30.0
    late_s: float = 0.5
    stopped_share: float = 0.4

    @property
    def stopped_after_s(self) -> float:
        """How long it may be stopped by a signal."""
        return self.stopped_share * self.hung_after_s


@dataclass(frozen=True, slots=True)
class Look:
    """One look. `late_s`: how much later than planned it came. `cpu_s` None: not known from here.

    `stopped`: the main process is stopped by a signal. `stalled`: redo is waiting for storage.
    """

    now_s: float
    answered: bool
    vdl: int = 0
    cpu_s: float | None = None
    stopped: bool = False
    stalled: bool = False
    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict, in a sentence too; `silent_s` is the time without an answer that counts."""

    verdict: Verdict
    silent_s: float
    why: str


class Health:
    """The memory of the rule: what is known since the last answer."""

    def __init__(self, rules: HealthRules, now_s: float) -> None:
        self._rules = rules
        self.good_at_s = now_s  # the last time that it was known to be good
        self._excused_s = 0.0
        self._seen_at_s = now_s
        self._failures = 0
        self._still_since_s = now_s  # the last answer or movement
        self._still_excused_s = 0.0
        self._progress: tuple[int, float] | None = None
        self._worked_at_s = now_s  # the last answer or move of the VDL
        self._worked_excused_s = 0.0

    def look(self, look: Look) -> Finding:
        """What to make of it. After HUNG the owner acts; looking on is harmless."""
        since_s, self._seen_at_s = look.now_s - self._seen_at_s, look.now_s
        if look.answered:
            self.__init__(self._rules, look.now_s)  # type: ignore[misc]  # all is forgotten
            return Finding(Verdict.GOOD, 0.0, "it answers")
        if look.stalled:
            self._excuse(since_s)
            return self._finding(look, Verdict.EXCUSED, "redo waits for a write quorum of storage nodes")
        if look.late_s > self._rules.late_s:
            self._excuse(min(look.late_s, since_s))
            return self._finding(look, Verdict.EXCUSED, f"this look came {look.late_s:.1f} s late")
        moved = self._moves(look)
        self._failures = 1 if moved else self._failures + 1
        return self._judge(look, moved=moved)

    def _excuse(self, seconds: float) -> None:
        self._excused_s += seconds
        self._still_excused_s += seconds
        self._worked_excused_s += seconds

    def _moves(self, look: Look) -> bool:
        """Whether it advanced since the last look without an answer."""
        progress = (look.vdl, look.cpu_s or 0.0)
        before, self._progress = self._progress, progress
        moved = before is not None and progress > before and not look.stopped
        if moved and before is not None and look.vdl > before[0]:
            self._worked_at_s, self._worked_excused_s = look.now_s, 0.0
        if moved:
            self._still_since_s, self._still_excused_s = look.now_s, 0.0
        return moved

    def _judge(self, look: Look, *, moved: bool) -> Finding:
        rules = self._rules
        silent_s = self._silent_s(look.now_s)
        still_s = look.now_s - self._still_since_s - self._still_excused_s
        if self._failures >= rules.failures and still_s >= rules.hung_after_s and not moved:
            how = "is stopped by a signal" if look.stopped else "neither wrote nor used the CPU meanwhile"
            return Finding(
                Verdict.HUNG, silent_s, f"it gave no answer for {silent_s:.1f} s ({self._failures} looks) and {how}"
            )
        if look.now_s - self._worked_at_s - self._worked_excused_s >= rules.give_up_after_s:
            return Finding(Verdict.HUNG, silent_s, f"it works, but gave no answer for {silent_s:.1f} s")
        return self._finding(look, Verdict.SUSPECT, "it is slow: it moves" if moved else "no answer")

    def _finding(self, look: Look, verdict: Verdict, why: str) -> Finding:
        silent_s = self._silent_s(look.now_s)
        return Finding(verdict, silent_s, f"{why} (silent for {silent_s:.1f} s)")

    def _silent_s(self, now_s: float) -> float:
        return max(0.0, now_s - self.good_at_s - self._excused_s)
