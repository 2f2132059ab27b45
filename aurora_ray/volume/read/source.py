"""Where a mount gets pages from: a volume that is open for writing, or a reader of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.volume.read.pages import PageRange, PageRun
    from aurora_ray.volume.spec import VolumeSpec


class PageSource(Protocol):
    """Pages and file tables of one volume as of any LSN up to `read_lsn` that is still kept."""

    @property
    def spec(self) -> VolumeSpec:
        """The volume's shape."""

    @property
    def read_lsn(self) -> int:
        """The newest LSN that can be read: durable, and what a read gives that names none. It never goes back."""

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int | None = None, timeout_s: float = ...
    ) -> list[PageRun]:
        """The ranges as of `lsn`, in the order asked. Raises OutOfRangeError, QuorumLostError."""

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = ...) -> FileTable:
        """The file table as of `lsn`. Raises OutOfRangeError, QuorumLostError."""
