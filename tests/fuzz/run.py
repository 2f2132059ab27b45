"""Runs targets for a time: only typed errors come out, each input is done with soon, and memory stays bounded."""

import random
import time
import tracemalloc

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import Target

INPUT_S_MAX = 2.0
GROWTH_BYTES_MAX = 256 << 20
VARIANTS = 40  # of each sound input


class FuzzError(AssertionError):
    """An input that a decoder does not stand, in hexadecimal."""


def fuzz(target: Target, seconds: float, seed: int) -> tuple[int, int]:
    """How many inputs were fed, and how many of them were taken. Raises FuzzError."""
    choose = random.Random(f"{target.name} {seed}")
    fed = taken = 0
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        sound = target.sound(choose)
        target.decode(sound)
        for _ in range(VARIANTS):
            content = mutated(choose, sound)
            if choose.random() < 0.9:
                content = target.repair(content)
            fed += 1
            taken += _feed(target, content, seed)
            if time.monotonic() > deadline_s:
                break
    return fed, taken


def _feed(target: Target, content: bytes, seed: int) -> bool:
    began_s = time.monotonic()
    try:
        target.decode(content)
    except target.errors:
        taken = False
    except Exception as error:
        raise FuzzError(f"{target.name}, seed {seed}: {error!r} for {content.hex()}") from error
    else:
        taken = True
    if time.monotonic() - began_s > INPUT_S_MAX and time.process_time() > 0:
        raise FuzzError(f"{target.name}, seed {seed}: more than {INPUT_S_MAX:g} s for {content.hex()}")
    return taken


def peak_of(target: Target, inputs: int, seed: int) -> int:
    """Bytes that Python allocates at most for one of so many changed inputs."""
    choose, highest = random.Random(seed), 0
    for _ in range(inputs):
        content = target.repair(mutated(choose, target.sound(choose)))
        tracemalloc.start()
        try:
            _feed(target, content, seed)
            highest = max(highest, tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return highest
