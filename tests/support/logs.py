"""A test fails on a WARNING or ERROR that it did not announce: what nobody expects, nobody should log.

@pytest.mark.allowed_logs(r"node n3 is away")
async def test_writes_go_on_without_a_node(): ...
"""

import logging
import re
from collections.abc import Sequence

# Messages of libraries that say nothing about us. Each with the reason why; keep this short.
ALLOWED_EVERYWHERE: tuple[str, ...] = (
    # A server was stopped while a call was under way: what most tests here do on purpose.
    r"WARNING grpc\._cython\.cygrpc: Aborting method .* due to server stop",
    # gRPC has one poller for all event loops of a process. What arrives late for a call of an earlier test, whose loop
    # is gone, it reports in the present one's. Our processes have one loop.
    r"ERROR asyncio: Exception in callback PollerCompletionQueue\._handle_events[^;]*\n?[^;]*Event loop is closed",
)


class LogRecorder(logging.Handler):
    """Keeps every record of level WARNING and above, from whichever logger and thread."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self._seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one record, exception and all."""
        error = f" ({record.exc_info[1]!r})" if record.exc_info and record.exc_info[1] is not None else ""
        self._seen.append(f"{record.levelname} {record.name}: {record.getMessage()}{error}")

    def unlisted(self, patterns: Sequence[str]) -> list[str]:
        """The records that no pattern is found in. A pattern sees `LEVEL logger: message (exception)`."""
        allowed = [re.compile(pattern) for pattern in (*ALLOWED_EVERYWHERE, *patterns)]
        return [line for line in self._seen if not any(pattern.search(line) for pattern in allowed)]
