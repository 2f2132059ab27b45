"""What every actor's process sets up for itself: a log file, telemetry, and a garbage collector that keeps quiet."""

from __future__ import annotations

import logging
import logging.handlers
import os
from pathlib import Path
from typing import Final

from aurora_ray import telemetry
from aurora_ray.compute.directories import PRIVATE_UMASK
from aurora_ray.rpc.process import expect_long_service

LOG_BYTES_MAX: Final = 8 << 20
LOG_FILES: Final = 2
FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_process(service: str, name: str, data_dir: Path, attributes: telemetry.Attributes | None = None) -> None:
    """Log lines go to `<data_dir>/logs/<name>.log`, spans where `telemetry.configure` says. Once a process."""
    os.umask(PRIVATE_UMASK)
    directory = data_dir / "logs"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{name}.log"
    path.touch(mode=0o600)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES - 1)
    handler.setFormatter(logging.Formatter(FORMAT))
    logger = logging.getLogger("aurora_ray")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False  # Ray has its own ideas about the root logger
    telemetry.configure(f"aurora-{service}", attributes, span_dir=data_dir / "telemetry")
    expect_long_service()
