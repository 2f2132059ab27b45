"""A day of a bursty tenant, compressed: what the policy gives, beside an oracle that knows the trace, and a machine
that is sized for the peak. No engine runs: the policy is pure, and this is what it decides."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aurora_ray.control.decide.capacity import UP, Autoscaler, Sample, steps_up
from aurora_ray.control.model.capacity import Capacity

DAY_S: Final = 86_400
CPUS_PER_ACU: Final = 0.25
LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Day:
    """ACU-seconds: what the oracle gives (the least of which the load takes no more than UP), what the policy gives
    more and less than that, and what the peak takes for the whole day. `short_s`: seconds in which the policy gave less
    than the load itself needed."""

    oracle: float
    over: float
    under: float
    peak: float
    short_s: float


def bursty(seed: int, seconds: int = DAY_S) -> list[float]:
    """CPUs wanted in each second: a wave over the day, and bursts of some minutes."""
    rng, wanted, burst, ends = random.Random(seed), [], 0.0, 0
    for at in range(seconds):
        if at >= ends:
            burst = rng.uniform(0.5, 3.0) if rng.random() < 1 / 1800 else 0.0
            ends = at + (rng.randrange(60, 600) if burst else 1)
        wave = max(0.0, 0.4 * math.sin(2 * math.pi * (at / seconds - 0.25)))
        wanted.append(max(0.0, wave + burst + rng.gauss(0, 0.02)))
    return wanted


def judge(wanted: Sequence[float], most: float = 16.0) -> Day:
    """Plays the trace, a look each second."""
    rule, policy, acu = Capacity(0.5, most), Autoscaler(), 0.5
    oracle = over = under = short_s = 0.0
    for at, cpus in enumerate(wanted):
        used = min(cpus, acu * CPUS_PER_ACU)
        held = max(0.0, 1 - used / cpus) if cpus > 0 else 0.0
        right = min(max(steps_up(cpus / CPUS_PER_ACU / UP), 0.5), most)
        oracle += right
        over, under = over + max(0.0, acu - right), under + max(0.0, right - acu)
        short_s += held > 0
        acu = policy.look(rule, Sample(at * LOOK_S, acu, used, CPUS_PER_ACU, held)).acu
    peak = max(min(max(steps_up(cpus / CPUS_PER_ACU / UP), 0.5), most) for cpus in wanted) * len(wanted)
    return Day(oracle, over, under, peak, short_s)
