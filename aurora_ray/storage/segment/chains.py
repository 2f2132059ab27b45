"""How long the chains of deltas are that the last layers wrote, so that the next layer need not look.

Coalescing must know of each changed page whether a version is there and how long its chain is. Asking RocksDB is a seek
over all its sorted runs, most of what coalescing costs where pages are changed at random; the answer is nearly always
what a layer a moment ago wrote itself. So that is kept here, four bytes a page, in the form that src/versions.c reads.

A node that has just started knows nothing. It does not ask either: it goes by `ASSUMED` the first time. A delta is
right on whatever is there, a page that was never written being zeros; an image then comes a few deltas early, or the
chain gets that much longer than it may be otherwise.
"""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple

CHAIN_DELTAS_MAX: Final = 16  # then an image
RANGE_PAGES: Final = 1024
_RANGE_BITS: Final = RANGE_PAGES.bit_length() - 1
_EMPTY: Final = bytes(RANGE_PAGES * array("I").itemsize)
RANGES_MAX: Final = 2048  # 8 MiB
_BYTES_BITS: Final = 16  # a chain's deltas have fewer bytes than a page, which has 32 KiB at most


class Chain(NamedTuple):
    """Of a page's newest version: deltas since the last image and their bytes; both 0 for an image."""

    deltas: int
    delta_bytes: int


def _packed(chain: Chain) -> int:
    return chain.deltas + 1 << _BYTES_BITS | chain.delta_bytes


ASSUMED: Final = _packed(Chain(CHAIN_DELTAS_MAX // 2, 0))


class KnownChains:
    """The chains of pages at the end of the last layer, as far as they are known.

    At most RANGES_MAX ranges of 1,024 pages, which is a whole segment unless its files are many and small; the range
    that was begun first makes room. Whoever changes versions other than by a layer, or fails to finish one, calls
    `clear`.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, int], array[int]] = {}
        self._of_file: dict[int, set[int]] = {}  # the ranges of each file: it may be dropped among thousands
        # While no range had to make room: ranges that come and go, assumed anew each time, would let chains grow
        # without end. After `clear`, which is rare, they may be that much longer once more.
        self.may_assume = True

    def get(self, file_id: int, page: int) -> Chain | None:
        """None if it is not known."""
        chains = self._ranges.get((file_id, page >> _RANGE_BITS))
        packed = 0 if chains is None else chains[page % RANGE_PAGES]
        return Chain((packed >> _BYTES_BITS) - 1, packed & (1 << _BYTES_BITS) - 1) if packed else None

    def put(self, file_id: int, page: int, chain: Chain) -> None:
        """From the end of this layer on."""
        self.range_of(file_id, page)[page % RANGE_PAGES] = _packed(chain)

    def range_of(self, file_id: int, page: int) -> array[int]:
        """The packed chains of the page's range, 0 where not known, to be read and changed before the next call."""
        key = file_id, page >> _RANGE_BITS
        chains = self._ranges.get(key)
        if chains is None:
            if len(self._ranges) >= RANGES_MAX:
                self._forget(next(iter(self._ranges)))
                self.may_assume = False
            chains = self._ranges[key] = array("I", _EMPTY)
            self._of_file.setdefault(file_id, set()).add(key[1])
        return chains

    def forget_file(self, file_id: int) -> None:
        """A cut may have hidden any version of it."""
        for number in self._of_file.pop(file_id, ()):
            del self._ranges[file_id, number]

    def _forget(self, key: tuple[int, int]) -> None:
        file_id, number = key
        del self._ranges[key]
        of_file = self._of_file[file_id]
        of_file.discard(number)
        if not of_file:
            del self._of_file[file_id]

    def clear(self) -> None:
        """Nothing is known any more."""
        self._ranges.clear()
        self._of_file.clear()
        self.may_assume = True
