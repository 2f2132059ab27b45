"""What a backup is made of: the manifest, the whole truth of it. Data and decisions, no I/O.

    <fleet>/<volume>/log/<start>-<end>-<owner>          flushes (start, end], all groups
    <fleet>/<volume>/images/<lsn>-<owner>/<n>           pages as of an LSN, an extent a block
    <fleet>/<volume>/images/<lsn>-<owner>/index         where every extent lies as of that LSN, and the file table
    <fleet>/<volume>/pages/<start>-<end>-<owner>        a page of the catalogue: chunks that left the manifest for room
    <fleet>/<volume>/holds/<id>                         a restore that is under way, and until when it is to be heeded
    <fleet>/<volume>/manifest/<number>                  the newest number counts; made once, never replaced

A manifest names every object that counts; what it does not name is not there. It is put last, under the next number, if
nobody has put that yet: so half a backup is invisible, and of two writers one is told. Whoever begins to write puts a
manifest of its own first, with nothing new but its name as the *owner*. From then on whoever owned it before can add
nothing (its number is taken), and objects with any other owner's name that this manifest does not name are never named
again by anybody: that is why they may be collected (`collect.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgpack  # type: ignore[import-untyped]

from aurora_ray.errors import UNDECODABLE, ConfigurationError, DivergedError, MalformedError, OutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT: Final = 2  # of what names a policy of residency, to which an older program would not keep; else 1
CHUNKS_MAX: Final = 1000  # in a manifest; when there are more, the older half moves to a page of the catalogue
MANIFESTS_KEPT: Final = 8
RETENTION_MAX_S: Final = 35 * 86400  # that a cluster can be given
_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Log (start, end]; `epoch` of its last flush, times of its flushes' writers (microseconds since 1970)."""

    start: int
    end: int
    epoch: int
    first_us: int
    last_us: int
    nbytes: int  # of the object
    name: str


@dataclass(frozen=True, slots=True)
class CataloguePage:
    """Chunks in an object of their own."""

    start: int
    end: int
    first_us: int
    last_us: int
    count: int
    nbytes: int  # of the chunks
    name: str


@dataclass(frozen=True, slots=True)
class Image:
    """All pages as of `lsn`, a flush's end; `time_us`: when it was written. `objects`: names of those with pages, and
    how many bytes of each the image uses; some are of earlier images."""

    lsn: int
    time_us: int
    epoch: int
    index: str
    objects: tuple[tuple[str, int], ...]
    nbytes: int  # of all blocks, as they are stored


@dataclass(frozen=True, slots=True)
class Subject:
    """The cluster, as far as it takes to make it again. `password`: empty where there is no key to keep it by.
    `region`: where its data lies; `residency`: the regions and the jurisdictions in which it may lie, none: anywhere.
    """

    cluster: str
    engine: str
    engine_version: str
    page_size: int
    group_bytes: int
    memory_bytes: int = 0
    readers: int = 0
    parameters: tuple[tuple[str, str], ...] = ()
    marks: tuple[tuple[str, int], ...] = ()
    password: str = field(default="", repr=False)
    region: str = ""
    residency: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True, slots=True)
class Manifest:
    """One state of a backup. `retention_s`: for how long history is kept; `ended_s`: since when its volume has no
    writer any more (Unix time; 0: it goes on), see `ended.py`."""

    number: int
    owner: str
    volume_id: str
    subject: Subject
    retention_s: int
    groups: tuple[int, ...] = (0,)
    begun_s: float = 0.0  # Unix times
    written_s: float = 0.0
    images: tuple[Image, ...] = ()
    pages: tuple[CataloguePage, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    ended_s: float = 0.0

    @property
    def end_lsn(self) -> int:
        """Up to where the log is backed up; the newest image's LSN where none follows it."""
        return max(self._log_end, self.images[-1].lsn if self.images else 0)

    @property
    def _log_end(self) -> int:
        return self.chunks[-1].end if self.chunks else self.pages[-1].end if self.pages else 0

    @property
    def end_us(self) -> int:
        """When the last flush that is backed up was written (microseconds since 1970); 0: none is."""
        last = self.chunks[-1].last_us if self.chunks else self.pages[-1].last_us if self.pages else 0
        return max(last, self.images[-1].time_us if self.images else 0)

    @property
    def epoch(self) -> int:
        """Of the last flush that is backed up."""
        return max(self.chunks[-1].epoch if self.chunks else 0, self.images[-1].epoch if self.images else 0)

    # ---- changes

    def next(self, owner: str, **changes: Any) -> Manifest:
        """What may be put after this one."""
        return replace(self, number=self.number + 1, owner=owner, **changes)

    def with_chunk(self, chunk: Chunk, *, gap: bool = False) -> Manifest:
        """The log goes on, `gap`: after a part that is missing. Raises DivergedError for what does not follow."""
        end = self.end_lsn
        follows = chunk.start >= end if gap else chunk.start == end or not end
        if not follows or chunk.epoch < self.epoch or chunk.end <= chunk.start:
            raise DivergedError(
                f"log ({chunk.start}, {chunk.end}] of epoch {chunk.epoch} does not follow LSN {self.end_lsn}"
                f" of epoch {self.epoch}"
            )
        return replace(self, chunks=(*self.chunks, chunk))

    def with_image(self, image: Image) -> Manifest:
        """Another image. Raises DivergedError for one that is older than the last."""
        if self.images and image.lsn < self.images[-1].lsn:
            raise DivergedError(f"an image of LSN {image.lsn} is older than the last one, of {self.images[-1].lsn}")
        return replace(self, images=(*(i for i in self.images if i.lsn != image.lsn), image))

    # ---- what is needed

    def image_for(self, lsn: int) -> Image:
        """Where a restore of `lsn` starts. Raises OutOfRangeError, which names what can be had."""
        below = [image for image in self.images if image.lsn <= lsn]
        if not below or lsn > self._reach(below[-1]):
            raise OutOfRangeError(f"LSN {lsn} is not in this backup: {self.describe()}")
        return below[-1]

    def _reach(self, image: Image) -> int:
        """Up to where log goes on without a gap from an image."""
        end = image.lsn
        for start, stop in self.stretches():
            if start <= end <= stop:
                return stop
        return end

    def stretches(self) -> list[tuple[int, int]]:
        """Where there is log without a gap, ascending."""
        found: list[tuple[int, int]] = []
        spans: list[Chunk | CataloguePage] = [*self.pages, *self.chunks]
        for each in spans:
            if found and found[-1][1] == each.start:
                found[-1] = (found[-1][0], each.end)
            else:
                found.append((each.start, each.end))
        return found

    def ranges(self) -> list[tuple[int, int]]:
        """LSNs that can be restored: from an image to the end of the log that goes on from it."""
        found: list[tuple[int, int]] = []
        for image in self.images:
            reach = self._reach(image)
            if not found or image.lsn > found[-1][1]:
                found.append((image.lsn, reach))
        return found

    def describe(self) -> str:
        """What can be restored, for people."""
        ranges = " and ".join(f"lsn:{first} to lsn:{last}" for first, last in self.ranges())
        return f"what can be restored goes from {ranges}" if ranges else "nothing can be restored yet"

    def objects(self) -> frozenset[str]:
        """Every object that it names, chunks in pages of the catalogue left out."""
        images = (name for image in self.images for name in (image.index, *(name for name, _ in image.objects)))
        return frozenset((*images, *(page.name for page in self.pages), *(chunk.name for chunk in self.chunks)))

    def expired(self, oldest_us: int) -> Manifest:
        """Without what no restore of a moment since `oldest_us` needs: the last image from before it stays, and all log
        from there on."""
        before = [image for image in self.images if image.time_us <= oldest_us]
        if not before:
            return self
        first = before[-1].lsn
        return replace(
            self,
            images=tuple(image for image in self.images if image.lsn >= first),
            pages=tuple(page for page in self.pages if page.end > first),
            chunks=tuple(chunk for chunk in self.chunks if chunk.end > first),
        )


# ---- as bytes


def pack(manifest: Manifest) -> bytes:
    """Msgpack of a map by field name; what it is made of, as arrays in the order of the fields."""
    number = FORMAT if any(manifest.subject.residency) else 1
    packed: bytes = msgpack.packb({"format": number, **{name: _plain(getattr(manifest, name)) for name in _FIELDS}})
    return packed


def unpack(data: bytes) -> Manifest:
    """The inverse. Raises MalformedError, ConfigurationError for one of a newer version."""
    try:
        values = msgpack.unpackb(data, use_list=False)
        written_by = int(values["format"])
        if written_by > FORMAT:
            raise ConfigurationError(
                f"a backup's manifest has format {written_by}, this aurora-ray knows up to {FORMAT}: use a newer one"
            )
        return _manifest(values)
    except (*UNDECODABLE, msgpack.UnpackException) as error:
        raise MalformedError(f"a backup's manifest does not parse: {error!r}") from error


_FIELDS: Final = tuple(Manifest.__dataclass_fields__)
_SUBJECT: Final = tuple(Subject.__dataclass_fields__)


def _plain(value: Any) -> Any:
    if isinstance(value, Subject):
        return {name: _plain(getattr(value, name)) for name in _SUBJECT}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Chunk | CataloguePage | Image):
        return [_plain(getattr(value, name)) for name in value.__dataclass_fields__]
    return value


def _manifest(values: Mapping[str, Any]) -> Manifest:
    known = {name: values[name] for name in _FIELDS if name in values}
    subject = {name: value for name, value in values["subject"].items() if name in _SUBJECT}
    return Manifest(
        **{
            **known,
            "subject": Subject(**subject),
            "images": tuple(Image(*each) for each in values["images"]),
            "pages": tuple(CataloguePage(*each) for each in values["pages"]),
            "chunks": tuple(Chunk(*each) for each in values["chunks"]),
        }
    )


def pack_chunks(chunks: Sequence[Chunk]) -> bytes:
    """A page of the catalogue."""
    packed: bytes = msgpack.packb({"format": 1, "chunks": _plain(tuple(chunks))})
    return packed


def unpack_chunks(data: bytes) -> tuple[Chunk, ...]:
    """The inverse. Raises MalformedError."""
    try:
        return tuple(Chunk(*each) for each in msgpack.unpackb(data, use_list=False)["chunks"])
    except (*UNDECODABLE, msgpack.UnpackException) as error:
        raise MalformedError(f"a page of a backup's catalogue does not parse: {error!r}") from error


# ---- names


def manifest_name(number: int) -> str:
    """Of a manifest."""
    return f"manifest/{number:0{_DIGITS}d}"


def manifest_number(name: str) -> int | None:
    """The inverse; None for what is none."""
    digits = name.rpartition("/")[2]
    return int(digits) if len(digits) == _DIGITS and digits.isdigit() else None


def span_name(kind: str, start: int, end: int, owner: str) -> str:
    """Of a chunk (`log`) or a page of the catalogue (`pages`)."""
    return f"{kind}/{start:0{_DIGITS}d}-{end:0{_DIGITS}d}-{owner}"


def image_name(lsn: int, owner: str, part: str) -> str:
    """Of a part of an image."""
    return f"images/{lsn:0{_DIGITS}d}-{owner}/{part}"


def owner_of(name: str) -> str:
    """Who put a chunk, a page of the catalogue or a part of an image; empty for other names."""
    kind, _, rest = name.partition("/")
    if kind not in ("log", "pages", "images"):
        return ""
    return rest.partition("/")[0].rpartition("-")[2]
