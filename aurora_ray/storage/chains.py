"""How long the chains of deltas are that the last layers wrote, so that the next layer need not look.

Coalescing must know of each changed page whether a version is there and how long its chain is. Asking RocksDB is a seek
over all its sorted runs, most of what coalescing costs where pages are changed at random; the answer is nearly always
what a layer a moment ago wrote itself. So that is kept here, four bytes a page.
"""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple

_CHUNK_BITS: Final = 10
_CHUNK_PAGES: Final = 1 << _CHUNK_BITS
_EMPTY: Final = bytes(_CHUNK_PAGES * array("I").itemsize)
CHUNKS_MAX: Final = 512
_BYTES_BITS: Final = 16  # a chain's deltas have less than half a page of bytes, and pages have 64 KiB at most


class Chain(NamedTuple):
    """Of a page's newest version: deltas since the last image and their bytes; both 0 for an image."""

    deltas: int
    delta_bytes: int


class KnownChains:
    """The chains of pages at the end of the last layer, as far as they are known.

    At most CHUNKS_MAX ranges of 1,024 pages, 2 MiB; the range that was begun first makes room. Whoever changes versions
    other than by a layer, or fails to finish one, calls `clear`.
    """

    def __init__(self) -> None:
        self._chunks: dict[tuple[int, int], array[int]] = {}

    def get(self, file_id: int, page: int) -> Chain | None:
        """None if it is not known."""
        chunk = self._chunks.get((file_id, page >> _CHUNK_BITS))
        packed = 0 if chunk is None else chunk[page & _CHUNK_PAGES - 1]
        return Chain((packed >> _BYTES_BITS) - 1, packed & (1 << _BYTES_BITS) - 1) if packed else None

    def put(self, file_id: int, page: int, chain: Chain) -> None:
        """From the end of this layer on."""
        key = file_id, page >> _CHUNK_BITS
        chunk = self._chunks.get(key)
        if chunk is None:
            if len(self._chunks) >= CHUNKS_MAX:
                del self._chunks[next(iter(self._chunks))]
            chunk = self._chunks[key] = array("I", _EMPTY)
        chunk[page & _CHUNK_PAGES - 1] = chain.deltas + 1 << _BYTES_BITS | chain.delta_bytes

    def forget_file(self, file_id: int) -> None:
        """A cut may have hidden any version of it."""
        for key in [key for key in self._chunks if key[0] == file_id]:
            del self._chunks[key]

    def clear(self) -> None:
        """Nothing is known any more."""
        self._chunks.clear()
