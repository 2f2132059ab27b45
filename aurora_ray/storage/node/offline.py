"""What a storage node's directory tells while nobody serves it: for repairs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aurora_ray.errors import UNDECODABLE, MalformedError, StorageError
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.disk.keys import META_KEY
from aurora_ray.storage.disk.store import SegmentStore
from aurora_ray.storage.segment.meta import SegmentMeta

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.log.segment_rules import Membership


def read_membership(segment: Path) -> Membership:
    """Who holds the group, as the copy in this directory says. Raises StorageError if it does not open.

    The node must be stopped, and its lock held or known to be free: RocksDB finishes on opening what a crash cut short.
    """
    config = StorageConfig(node_id="", az="", data_dir=segment)
    try:
        store = SegmentStore(segment, write_buffer_bytes=config.write_buffer_bytes)
        try:
            packed = store.get(META_KEY)
            return SegmentMeta.unpack(packed or b"").epochs.membership
        finally:
            store.close()
    except MalformedError as error:
        raise StorageError(f"the copy in {segment} is damaged: {error}") from error
    except StorageError:
        raise
    except Exception as error:  # RocksDB's errors have no common class
        raise StorageError(f"the copy in {segment} does not open: {error}") from error


def known_hosts(data_dir: Path) -> dict[str, str]:
    """Where the node's peers answered last, without ports; empty if it does not know."""
    try:
        addresses = json.loads((data_dir / "peers.json").read_text())
        return {str(node): str(address).rpartition(":")[0].strip("[]") for node, address in addresses.items()}
    except (OSError, *UNDECODABLE):
        return {}
