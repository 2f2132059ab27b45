"""Zstandard for batches and file tables, one compressor and one decompressor a thread.

A compressor that two threads use at once corrupts its memory: the process ends with a segmentation fault.
"""

from __future__ import annotations

import threading

import zstandard


class _Compression(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_this_thread = _Compression()


def compress(data: bytes | memoryview) -> bytes:
    """A frame that names its content's size."""
    return _this_thread.compressor.compress(data)


def decompress(data: bytes | memoryview, bytes_max: int) -> bytes:
    """The content of a frame; one that does not name its size may have `bytes_max` bytes. Raises ZstdError."""
    return _this_thread.decompressor.decompress(data, max_output_size=bytes_max)
