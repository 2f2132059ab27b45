"""What others do with two regions: a streaming standby beyond the same simulated link, promoted by pg_promote."""

from __future__ import annotations

import shutil
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks.link_proxy import LinkProxy
from benchmarks.readers_peers import StandbyPeer
from benchmarks.systems.base import query

if TYPE_CHECKING:
    from benchmarks.systems.base import Site

PROMOTE_WITHIN_S: Final = 60


class FarStandby(StandbyPeer):
    """A primary, and a standby that streams over the link. Its copy is taken without it, as nobody waits for that."""

    title = "stock, a streaming standby"

    def __init__(self, site: Site, one_way_s: float) -> None:
        super().__init__(site)
        self._one_way_s = one_way_s

    def start(self) -> None:
        """The primary alone, in a directory where nothing is left of another one."""
        shutil.rmtree(self.site.directory(self.name), ignore_errors=True)
        super().start()
        self.link = self._cleanup.enter_context(LinkProxy(self._one_way_s, self.primary.port))

    @property
    def source_port(self) -> int:
        """The link's near end."""
        return self.link.port

    @property
    def writer_dsn(self) -> str:
        """By which libpq finds whichever of the two takes writes."""
        ports = [self.primary.port, *(standby.port for standby in self._standbys)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def lose_primary(self) -> dict[str, Any]:
        """Ends the primary at once, and promotes the standby: what is known to be lost, and when that was asked for
        (Unix time in seconds)."""
        (standby,) = self._standbys
        ((written,),) = query(self.dsn, "SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
        self.primary.stop(signal.SIGQUIT)
        time.sleep(2 * self._one_way_s)  # what was under way arrives: somebody has to notice the loss first
        ((received,),) = query(standby.dsn, "SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn")
        asked_s = time.time()
        query(standby.dsn, f"SELECT pg_promote(true, {PROMOTE_WITHIN_S})")
        return {"asked_s": asked_s, "rpo_bytes": max(0, int(written) - int(received))}
