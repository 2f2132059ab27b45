"""Stock PostgreSQL, alone: on the local disk with fsync, and without (the engine's ceiling)."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from benchmarks.procfs import Component
from benchmarks.systems.base import System, touch_pages, wal_counters
from benchmarks.systems.server import Server, copy_tree, template


class Stock(System):
    """What most people run: one server, one disk, no copy."""

    name = "stock"
    title = "stock, local disk"
    parameters: ClassVar[Mapping[str, str]] = {}

    def start(self) -> None:
        """From a copy of the template."""
        directory = self.site.directory(self.name)
        self._cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        copy_tree(template(self.site), directory / "data")
        self.server = Server(self.site, directory / "data", self.site.sizes.shared_buffers_bytes, self.parameters)
        self._cleanup.callback(lambda: self.server.stop(signal.SIGQUIT))
        self.server.start()

    def warm_up(self) -> None:
        """As the others, with the full page images of a checkpoint behind it where there are any."""
        super().warm_up()
        if self.parameters.get("full_page_writes") != "off":
            touch_pages(self.dsn)

    @property
    def dsn(self) -> str:
        """The server's."""
        return self.server.dsn

    def components(self) -> list[Component]:
        """The engine alone."""
        return [Component("engine", (self.server.pid,), tree=True)]

    def counters(self) -> dict[str, float]:
        """The WAL's."""
        return wal_counters(self.dsn, self.site.install.major)

    def data_dirs(self) -> list[Path]:
        """The data directory."""
        return [self.server.data_dir]


class StockNoSync(Stock):
    """Nothing is safe: how fast the engine could be if durability cost nothing."""

    name = "nosync"
    title = "stock, fsync=off"
    parameters: ClassVar[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}
