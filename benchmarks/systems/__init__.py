"""The systems under measurement."""

from __future__ import annotations

from typing import Final

from benchmarks.systems.aurora import Aurora
from benchmarks.systems.base import System
from benchmarks.systems.standbys import Standbys
from benchmarks.systems.stock import Stock, StockNoSync

SYSTEMS: Final[dict[str, type[System]]] = {each.name: each for each in (Aurora, Standbys, Stock, StockNoSync)}
