"""The sending side of a copy: a segment's pages as of an LSN, in ranges, and where to cut the ranges.

What is sent is content, not how it is stored here (see `content.py`), so that a new copy can be put together from
ranges that come from different peers. The receiving side is `filling.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import google_crc32c

from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.pages.content import FIRST, ContentDigest, Walk, key_range, log_digest, stored_keys
from aurora_ray.storage.pages.reading import require_complete
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aurora_ray.storage.segment.segment import Segment

_CHUNK_BYTES: Final = 1 << 20


async def send_pages(segment: Segment, request: pb.CopySegmentRequest) -> AsyncIterator[pb.PageChunk]:
    """The pages of a range as of an LSN, ascending. Raises OutOfRangeError, NotCompleteError or DamagedError."""
    require_complete(segment, request.lsn)
    walk = Walk(segment, request.lsn, *key_range(request))
    pages_max = max(1, _CHUNK_BYTES // segment.meta.page_size)
    while not walk.done:
        chunk = pb.PageChunk()
        for key, content in await walk.step(pages_max):
            image = bytes(content).rstrip(b"\0")
            chunk.pages.add(file_id=key.file_id, page=key.page, crc32c=google_crc32c.value(image), image=image)
        if not walk.done:
            chunk.next.file_id, chunk.next.page = walk.position
        yield chunk


async def outline(segment: Segment, pages_per_range: int) -> pb.OutlineSegmentReply:
    """Cuts the stored keys into ranges of `pages_per_range`. Raises DamagedError."""
    pacer = Pacer(rest_s=segment.rest_s)
    reply = pb.OutlineSegmentReply()
    for key in stored_keys(segment, FIRST):
        if reply.pages and reply.pages % pages_per_range == 0:
            reply.splits.add(file_id=key.file_id, page=key.page)
        reply.pages += 1
        if pacer.due:
            await pacer.rest()
    return reply


async def digest(segment: Segment, request: pb.DigestRequest) -> pb.DigestReply:
    """Of the content in a range as of an LSN, and of log. Raises OutOfRangeError, NotCompleteError or DamagedError."""
    require_complete(segment, request.lsn)
    walk = Walk(segment, request.lsn, *key_range(request))
    content = ContentDigest()
    while not walk.done and not (request.pages_max and content.pages >= request.pages_max):
        left = request.pages_max - content.pages if request.pages_max else _CHUNK_BYTES // segment.meta.page_size
        for key, page in await walk.step(max(1, left)):
            content.add(key, page)
    reply = pb.DigestReply(digest=content.digest(), pages=content.pages)
    if not walk.done:
        reply.next.file_id, reply.next.page = walk.position
    if request.with_log:
        reply.log_digest, reply.log_batches = await log_digest(segment, request.log_after_lsn, request.lsn)
    return reply
