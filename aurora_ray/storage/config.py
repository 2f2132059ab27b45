"""Settings of one storage node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """Who the node is, where it keeps its data and how far back it answers.

    History is kept for `retention_s`, but no more than `retention_bytes` of log a segment (read points with a live
    lease and anything not yet durable stay in any case).
    """

    node_id: str
    az: str
    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0  # 0: the port used last time, or any free one
    append_port: int = 0  # where streams of redo go; 0: any free one, clients ask for it
    retention_s: float = 300.0
    retention_bytes: int = 256 << 20
    layer_bytes: int = 32 << 20  # log is coalesced in layers of about this size ...
    idle_layer_bytes: int = 1 << 20  # ... or of this size when no log came for idle_s
    idle_s: float = 5.0
    tail_bytes_max: int = 1 << 30  # log of a segment that may wait for its layers: beyond, writers are slowed down
    background_interval_s: float = 0.25
    gossip_interval_s: float = 0.5
    peer_timeout_s: float = 5.0
    lease_s_max: float = 60.0  # read points live no longer than this without renewal; GC waits as long after a start
    scrub_interval_s: float = 6 * 3600.0  # from the end of one round over everything stored to the next; 0: never
    scrub_bytes_per_s: int = 8 << 20  # at most, while it goes on
    graveyard_s: float = 24 * 3600.0  # a dropped volume can be brought back for so long
    graveyard_bytes: int = 1 << 30  # at most, of segments that were replaced and tails that were annulled ...
    graveyard_disk_share: float = 0.05  # ... nor more than this share of the disk
    fold_bytes_per_s: int = 16 << 20  # of page versions that are read to clear away old ones
    disk_reserve_bytes: int = 256 << 20  # appends are refused while less than this is free
    write_buffer_bytes: int = 16 << 20  # RocksDB's, a segment
    write_buffers_bytes: int = 512 << 20  # RocksDB's, of all segments: beyond, they go to files earlier
    block_cache_bytes: int = 32 << 20  # RocksDB's, for the node
    index_bytes: int = 64 << 20  # log held by indexes of historic layers, a segment
