"""What a fleet needs of the system's limits."""

from __future__ import annotations

import resource
from typing import Final

from aurora_ray.errors import ConfigurationError

DESCRIPTORS_MIN: Final = 1024  # a storage node has about seventeen open files a segment, Ray's daemons some hundreds
DESCRIPTORS_WANTED: Final = 65536


def raise_descriptor_limit() -> None:
    """For this process and what it starts: as many open files as are wanted or allowed. Raises ConfigurationError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if allowed < DESCRIPTORS_MIN:
        raise ConfigurationError(
            f"only {hard} files may be open at once (`ulimit -Hn`), and a fleet needs {DESCRIPTORS_MIN}: raise that"
        )
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
