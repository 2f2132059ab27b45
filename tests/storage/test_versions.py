"""The inner loop of coalescing gives, byte for byte, what the same rules written in Python give."""

from __future__ import annotations

import random
from array import array
from typing import NamedTuple

import pytest

from aurora_ray.log import record as rec
from aurora_ray.log.pages import Change, fits, merge_changes
from aurora_ray.storage._versions import versions_of
from aurora_ray.storage.disk.keys import DELTA, DELTA_HEAD, IMAGE_HEAD, guarded, page_key
from aurora_ray.storage.pages.coalesce import _steps
from aurora_ray.storage.segment.chains import ASSUMED, CHAIN_DELTAS_MAX, RANGE_PAGES, Chain, KnownChains

PAGE = 2048
END_LSN = (1 << 40) + 8
ASSUMED_CHAIN = Chain(CHAIN_DELTAS_MAX // 2, 0)


class Outcome(NamedTuple):
    versions: list[tuple[bytes, bytes]]
    images: list[int]
    left: list[int]


class Layer:
    """Random changes of pages, with what is known of their chains."""

    def __init__(self, seed: int, *, assume: bool = True) -> None:
        self.random = random.Random(seed)
        self.file_id = self.random.choice([1, 77, (1 << 32) + 5, (1 << 64) - 1])
        self.first_page = self.random.choice([0, RANGE_PAGES, (1 << 32) - RANGE_PAGES])
        self.assume = assume
        self.known = KnownChains()
        self.changes: dict[int, list[Change]] = {}
        for at in sorted(self.random.sample(range(RANGE_PAGES), 60)):
            page = self.first_page + at
            self.changes[self.file_id << 32 | page] = [self._change() for _ in range(self.random.randint(1, 5))]
            if self.random.random() < 0.7:
                self.known.put(self.file_id, page, self._chain())

    def _chain(self) -> Chain:
        deltas = self.random.choice([0, 1, CHAIN_DELTAS_MAX - 2, CHAIN_DELTAS_MAX - 1])
        return Chain(deltas, self.random.choice([6, PAGE - 40, PAGE - 1]) if deltas else 0)

    def _change(self) -> Change:
        choose = self.random
        record = rec.page_delta(1, 0, [self._range() for _ in range(choose.randint(0, 4))])
        if choose.random() < 0.1:
            record = rec.page_full(1, 0, choose.randbytes(choose.randint(0, PAGE - 9)) + bytes(9))
        elif choose.random() < 0.05:
            record = rec.page_delta(1, 0, [(PAGE - 4, bytes(8))])  # reaches beyond its page
        before = choose.randbytes(8 * choose.randint(0, 3))
        return 1, before + rec.encode(record), len(before)

    def _range(self) -> tuple[int, bytes]:
        offset = self.random.randrange(PAGE)
        return offset, self.random.randbytes(self.random.randint(0, min(90, PAGE - offset)))

    def run(self) -> Outcome:
        known = self.known.range_of(self.file_id, self.first_page)
        assumed = ASSUMED if self.assume else 0
        numbers = list(self.changes)
        return Outcome(
            *versions_of(self.changes, numbers, self.file_id, END_LSN, PAGE, known, assumed, CHAIN_DELTAS_MAX)
        )

    def expected(self) -> tuple[Outcome, dict[int, Chain | None]]:
        """The outcome, and what is known of each page afterwards."""
        outcome = Outcome([], [], [])
        known = {}
        for number, changes in self.changes.items():
            page = number & 0xFFFFFFFF
            chain = known[page] = self.known.get(self.file_id, page)
            base = chain or (ASSUMED_CHAIN if self.assume else None)
            if base is None or not all(fits(buf, at, PAGE) for _, buf, at in changes):
                outcome.left.append(number)
                continue
            merged = merge_changes(changes, PAGE, base_is_zeros=False)
            after = Chain(base.deltas + 1, base.delta_bytes + len(merged.data))
            if merged.is_image:
                after = Chain(0, 0)
                outcome.images.append(number)
            elif after.deltas >= CHAIN_DELTAS_MAX or after.delta_bytes >= PAGE:
                outcome.left.append(number)
                continue
            known[page] = after
            key = page_key(self.file_id, page, END_LSN)
            head = IMAGE_HEAD if merged.is_image else DELTA_HEAD.pack(DELTA, 0, *after)
            outcome.versions.append((key, guarded(key, head + merged.data)))
        return outcome, known


@pytest.mark.parametrize("assume", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_versions_are_what_the_rules_say(seed: int, *, assume: bool) -> None:
    layer = Layer(seed, assume=assume)
    expected, known = layer.expected()
    assert all(expected), "the test is meant to have some of each"
    assert layer.run() == expected
    for page, chain in known.items():
        assert layer.known.get(layer.file_id, page) == chain


def test_what_cannot_be_is_refused() -> None:
    known = array("I", bytes(4 * RANGE_PAGES))
    with pytest.raises(TypeError, match="list of changes"):
        versions_of({}, [5], 0, 1, PAGE, known, ASSUMED, CHAIN_DELTAS_MAX)
    with pytest.raises(TypeError, match="tuple"):
        versions_of({5: [b"no change"]}, [5], 0, 1, PAGE, known, ASSUMED, CHAIN_DELTAS_MAX)  # type: ignore[list-item]
    with pytest.raises(TypeError):
        versions_of({}, [b"5"], 0, 1, PAGE, known, ASSUMED, CHAIN_DELTAS_MAX)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="chains"):
        versions_of({}, [], 0, 1, PAGE, known[:-1], ASSUMED, CHAIN_DELTAS_MAX)
    with pytest.raises(ValueError, match="not supported"):
        versions_of({}, [], 0, 1, 1 << 16, known, ASSUMED, CHAIN_DELTAS_MAX)
    assert not any(known)


@pytest.mark.parametrize("seed", range(6))
async def test_steps_are_of_one_range_and_hold_every_page_once(seed: int) -> None:
    choose = random.Random(seed)
    pages = [choose.randrange(3 * RANGE_PAGES) for _ in range(choose.choice([1, 50, 3000]))]
    numbers = sorted({choose.randrange(3) << 32 | page for page in pages} | {1 << 70 | pages[0]})
    shuffled = choose.sample(numbers, len(numbers))

    async def pause() -> None:
        pass

    steps = [step async for step in _steps([*shuffled, shuffled[0]], pause)]
    assert [number for _, part in steps for number in part] == numbers
    for file_id, part in steps:
        assert 0 < len(part) <= 128
        assert {number >> 32 for number in part} == {file_id}
        assert len({number // RANGE_PAGES for number in part}) == 1
