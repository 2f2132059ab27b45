"""Stock PostgreSQL, alone: on the local disk with fsync, and without (the engine's ceiling)."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.procfs import Component
from benchmarks.systems.base import System, engine_counters, touch_pages
from benchmarks.systems.server import Server, copy_tree, rare_checkpoints, template
from benchmarks.workloads import Checkpoint


class Stock(System):
    """What most people run: one server, one disk, no copy."""

    name = "stock"
    title = "stock, local disk"
    writes_images = True
    own_parameters: ClassVar[Mapping[str, str]] = {}

    def start(self) -> None:
        """From a copy of the template."""
        directory = self.open_directory()
        if not self.from_kept_data:
            copy_tree(template(self.site), directory / "data")
        parameters = {**self.own_parameters, **self.parameters}
        self.server = Server(self.site, directory / "data", parameters)
        self._cleanup.callback(lambda: self.server.stop(signal.SIGINT if self.site.keep else signal.SIGQUIT))
        self.server.start()
        self.data_is_there()

    def begin(self, checkpoint: Checkpoint) -> None:
        """Long ago: no checkpoint from now on, and the images since the last one are written."""
        self.server.set_checkpoints(checkpoint)
        if checkpoint == Checkpoint.LONG_AGO and self.writes_images:
            touch_pages(self.dsn)

    @property
    def dsn(self) -> str:
        """The server's."""
        return self.server.dsn

    def components(self) -> list[Component]:
        """The engine alone."""
        return [Component("engine", (self.server.pid,), tree=True)]

    def counters(self) -> dict[str, float]:
        """The engine's."""
        return engine_counters(self.dsn, self.site.install.major)

    def settings(self) -> dict[str, Any]:
        """With those of workloads before which there was no checkpoint for long."""
        return {**super().settings(), **rare_checkpoints()}

    def data_dirs(self) -> list[Path]:
        """The data directory."""
        return [self.server.data_dir]


class StockNoSync(Stock):
    """Nothing is safe: how fast the engine could be if durability cost nothing."""

    name = "nosync"
    title = "stock, fsync=off"
    writes_images = False
    own_parameters: ClassVar[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}
