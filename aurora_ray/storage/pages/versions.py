"""Page versions as stored: the newest at an LSN, and what it takes to rebuild the page from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.errors import MalformedError
from aurora_ray.log.pages import apply_delta
from aurora_ray.storage.disk.damage import Damage, DamagedError
from aurora_ray.storage.disk.keys import CRC_BYTES, DELTA, DELTA_HEAD, PAGE_KEY, content_of, page_key
from aurora_ray.storage.segment.chains import Chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aurora_ray.storage.segment.cuts import FileCut
    from aurora_ray.storage.segment.segment import Segment


class Versions:
    """Reads versions through one iterator: as of its making, cheap for neighbouring pages.

    No frame has the iterator in a variable: the traceback of an error would keep it, and the store could not be closed.
    """

    def __init__(self, segment: Segment) -> None:
        self._owner = (segment.volume, segment.group)
        self._cursor = segment.store.cursor("pages")
        self._cuts = segment.cuts
        self._page_size = segment.meta.page_size

    def newest(self, file_id: int, page: int, lsn: int) -> Chain | None:
        """The chain of the version at `lsn` (a layer's end); None if the page was never written or was cut off."""
        cursor = self._cursor
        cursor.it.seek_for_prev(page_key(file_id, page, lsn))
        if not cursor.it.valid():
            self._cursor.check()
            return None
        of_file, of_page, version_lsn = PAGE_KEY.unpack(cursor.it.key())
        if of_file != file_id or of_page != page:
            return None
        cuts = self._cuts.get(file_id)
        if cuts is not None and self._is_cut(cuts, page, version_lsn, lsn):
            return None
        value = cursor.it.value()
        if value[CRC_BYTES] != DELTA:
            return Chain(0, 0)
        _, _, deltas, delta_bytes = DELTA_HEAD.unpack_from(value, CRC_BYTES)
        return Chain(deltas, delta_bytes)

    def _is_cut(self, cuts: list[FileCut], page: int, version_lsn: int, lsn: int) -> bool:
        offset = page * self._page_size
        return any(version_lsn < cut.lsn <= lsn and offset >= cut.new_size for cut in cuts)

    def content(self, file_id: int, page: int, lsn: int) -> bytearray | None:
        """The page as of `lsn` (a layer's end), whole; None if it was never written. Raises DamagedError."""
        if self.newest(file_id, page, lsn) is None:
            return None
        deltas = []
        image = b""
        for value in self._chain(file_id, page):
            if value[0] != DELTA:
                image = value[1:]
                break
            deltas.append(value[DELTA_HEAD.size :])
        content = bytearray(image)
        content.extend(bytes(self._page_size - len(image)))
        for delta in reversed(deltas):
            apply_delta(delta, content)
        return content

    def _chain(self, file_id: int, page: int) -> Iterator[bytes]:
        """Values of the page's versions from the current one backwards."""
        cursor = self._cursor
        prefix = page_key(file_id, page, 0)[:-8]
        while cursor.it.valid():
            key = cursor.it.key()
            if key[:-8] != prefix:
                return
            try:
                yield content_of(key, cursor.it.value())
            except MalformedError as error:
                raise DamagedError(self._owner, Damage("page", file_id, page), str(error)) from error
            cursor.it.prev()
        self._cursor.check()

    def has_file(self, file_id: int) -> bool:
        """Whether any version of any page of the file is stored."""
        self._cursor.it.seek(page_key(file_id, 0, 0))
        if not self._cursor.it.valid():
            self._cursor.check()
            return False
        return bool(PAGE_KEY.unpack(self._cursor.it.key())[0] == file_id)
