"""TCP ports for tests: free, never handed out twice in a run, and not where the kernel takes its own from.

Binding port 0 and closing it again would give a port that any outgoing connection on the machine may take before the
test does. Ours come from below the ephemeral range, each run starting elsewhere so that runs side by side seldom meet;
workers of one run (pytest-xdist) share them out and never meet.
"""

import os
import socket
from pathlib import Path

FIRST_PORT = 10_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortAllocator:
    """One per test run."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._end = int(_EPHEMERAL_RANGE.read_text().split()[0]) if _EPHEMERAL_RANGE.exists() else 32_768
        self._span = self._end - FIRST_PORT
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        run = os.getppid() if workers > 1 else os.getpid()
        self._left = self._span // workers
        self._next = (run * 97 + worker * self._left) % self._span

    def allocate(self) -> int:
        """A port that nothing listens on. Raises RuntimeError when none is left."""
        while self._left > 0:
            port = FIRST_PORT + self._next
            self._next = (self._next + 1) % self._span
            self._left -= 1
            if self._is_free(port):
                return port
        raise RuntimeError(f"no free port left between {FIRST_PORT} and {self._end}")

    def _is_free(self, port: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT will do
            try:
                probe.bind((self._host, port))
            except OSError:
                return False
        return True
