"""Recognises who reads a file in sequence, from its misses, and says how far ahead of it to fetch.

The window doubles with each half of it that was read, as in operating systems. What differs is that misses come in
about ascending order only: an engine reads ahead itself, with several workers that overtake each other, and only pages
that are absent are heard of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

AHEAD_MIN: Final = 16
AHEAD_MAX: Final = 1024  # pages
_OUT_OF_ORDER: Final = 512  # how far misses of one reader overtake each other


@dataclass(slots=True)
class Stream:
    """How a file has been read lately: misses in about ascending order, the newest page of them, and up to where pages
    were asked for ahead of them, the last time `ahead` of them."""

    newest: int = -_OUT_OF_ORDER - 1  # such that the first look at a file is no continuation
    end: int = -_OUT_OF_ORDER - 1
    ahead: int = 0

    def follow(self, first: int, end: int) -> range:
        """Takes a miss of pages [first, end) into account; what to read ahead."""
        if not self.newest - _OUT_OF_ORDER <= first <= max(self.newest, self.end) + _OUT_OF_ORDER:
            self.newest, self.end, self.ahead = end, end, 0
            return range(0)
        if end <= self.newest:
            return range(0)
        self.newest = end
        self.end = max(self.end, end)
        if self.end - end > self.ahead // 2:
            return range(0)
        self.ahead = min(max(AHEAD_MIN, self.ahead * 2), AHEAD_MAX)
        due = range(self.end, end + self.ahead)
        self.end = max(self.end, due.stop)
        return due
