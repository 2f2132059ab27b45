from collections.abc import Sequence

from aurora_ray.log.record import Buffer

def apply_at(buf: Buffer, at: int, page: bytearray, /) -> bool: ...
def apply_delta(delta: Buffer, page: bytearray, /) -> None: ...
def merge(
    changes: Sequence[tuple[int, bytes, int]],
    page_size: int,
    base_is_zeros: bool,
    zero_from: Sequence[int] | None = None,
    /,
) -> tuple[bool, bytes]: ...
def scan(
    batch: bytes, at: int, pages: dict[int, list[tuple[int, bytes, int]]], /
) -> list[tuple[int, int, int, int, int]]: ...
def walk(batch: bytes, at: int, group: int, start_lsn: int, /) -> tuple[int, int, int]: ...
