from array import array

from aurora_ray.log.pages import Change

def versions_of(
    changes: dict[int, list[Change]],
    numbers: list[int],
    file_id: int,
    end_lsn: int,
    page_size: int,
    known: array[int],
    assumed: int,
    deltas_max: int,
    /,
) -> tuple[list[tuple[bytes, bytes]], list[int], list[int]]: ...
