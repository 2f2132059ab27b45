"""A segment's storage in memory, and what a power failure does to it: synced changes stay, of the rest a prefix."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from aurora_ray.storage.disk.keys import LSN_KEY, lsn_key

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

    Change = tuple[str, bytes, bytes | None]  # family, key, value (None: deleted)


class PowerLoss(BaseException):
    """The node dies here. Not an Exception: no handler of the node's own may catch it."""


class MemoryStore:
    """Offers what `Segment` and the append path use of `SegmentStore`."""

    def __init__(self) -> None:
        self.owner = (b"", 0)
        self.fuse: random.Random | None = None  # when set, the next sync is cut short by a power failure
        self._durable: dict[str, dict[bytes, bytes]] = {"default": {}, "log": {}}
        self._now: dict[str, dict[bytes, bytes]] = {"default": {}, "log": {}}
        self.by_lsn: dict[int, bytes] = {}  # flush end -> batch, as the node sees it
        self.version = 0  # moves with every change
        self._log_keys: list[bytes] = []
        self._unsynced: list[list[Change]] = []

    # ---- as SegmentStore

    def get(self, key: bytes) -> bytes | None:
        return self._now["default"].get(key)

    def scan(self, family: str, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        for key, value in sorted(self._now[family].items()):
            if start <= key and (stop is None or key < stop):
                yield key, value

    def batch(self) -> MemoryBatch:
        return MemoryBatch(self)

    def log_batches(self, after_lsn: int, up_to_lsn: int) -> Iterator[bytes]:
        for _, batch in self.log_entries(after_lsn, up_to_lsn):
            yield batch

    def log_entries(self, after_lsn: int, up_to_lsn: int) -> Iterator[tuple[int, bytes]]:
        low = bisect_right(self._log_keys, lsn_key(after_lsn))
        high = bisect_right(self._log_keys, lsn_key(up_to_lsn))
        log = self._now["log"]
        for key in self._log_keys[low:high]:
            yield LSN_KEY.unpack(key)[0], log[key]

    def put_log(self, key: bytes, batch: bytes) -> None:
        self.apply([("log", key, batch)])

    def append_log(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        for key, batch in entries:
            self.put_log(key, batch)
        self.sync(True)

    def sync(self, _wait: object = True) -> None:
        if self.fuse is not None:
            raise PowerLoss
        for changes in self._unsynced:
            _apply(self._durable, changes)
        self._unsynced.clear()

    def folded_lsn(self) -> int:
        return 0

    def close(self) -> None:
        pass

    # ---- for the simulator

    def apply(self, changes: list[Change]) -> None:
        """Changes that land together, not durable yet."""
        self._unsynced.append(changes)
        self.version += 1
        _apply(self._now, changes)
        for family, key, value in changes:
            if family == "log":
                lsn = LSN_KEY.unpack(key)[0]
                if value is None:
                    self.by_lsn.pop(lsn, None)
                else:
                    self.by_lsn[lsn] = value
                at = bisect_left(self._log_keys, key)
                there = at < len(self._log_keys) and self._log_keys[at] == key
                if value is None and there:
                    del self._log_keys[at]
                elif value is not None and not there:
                    self._log_keys.insert(at, key)

    def lose_power(self, rng: random.Random) -> None:
        """Of the changes that were not synced, the first few made it to the disk."""
        for changes in self._unsynced[: rng.randint(0, len(self._unsynced))]:
            _apply(self._durable, changes)
        self._unsynced.clear()
        self._now = {family: dict(values) for family, values in self._durable.items()}
        self._log_keys = sorted(self._now["log"])
        self.by_lsn = {LSN_KEY.unpack(key)[0]: batch for key, batch in self._now["log"].items()}
        self.version += 1
        self.fuse = None

    def has_durable(self, lsn: int, batch: bytes) -> bool:
        """Whether this batch would survive."""
        return self._durable["log"].get(lsn_key(lsn)) == batch


class MemoryBatch:
    """Offers what `Segment` uses of `Batch`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._changes: list[Change] = []

    def put(self, family: str, key: bytes, value: bytes) -> None:
        self._changes.append((family, key, value))

    def delete(self, family: str, key: bytes) -> None:
        self._changes.append((family, key, None))

    def write_synced(self) -> None:
        self._store.apply(self._changes)
        self._store.sync()


def _apply(families: dict[str, dict[bytes, bytes]], changes: list[Change]) -> None:
    for family, key, value in changes:
        if value is None:
            families[family].pop(key, None)
        else:
            families[family][key] = value
