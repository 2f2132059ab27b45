"""What was asked of policies of residency, and what they said: a bounded file in the control plane's data directory.

`<data_dir>/audit.jsonl`: a JSON object a line, the oldest first, see `Verdict.audit_line`. A line is there, synced,
before anything is done because of it: where it cannot be written, nothing is done. When there are LINES_MAX lines the
file is written anew with the newer half. Each region has its own.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.durable import replace_file
from aurora_ray.errors import UNDECODABLE, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.replication.residency import Verdict

FILE_NAME: Final = "audit.jsonl"
LINES_MAX: Final = 1000


def note(data_dir: Path, verdicts: Iterable[Verdict]) -> None:
    """They were asked for now. Raises ConfigurationError if that cannot be written down."""
    path = data_dir / FILE_NAME
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    added = [json.dumps(verdict.audit_line(when)) for verdict in verdicts]
    try:
        lines = _lines(path)
        kept = lines if len(lines) + len(added) <= LINES_MAX else lines[-LINES_MAX // 2 :]
        replace_file(path, "".join(f"{line}\n" for line in (*kept, *added)))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written, so nothing is done: {error.strerror}") from error


def read(data_dir: Path, limit: int = LINES_MAX) -> list[dict[str, Any]]:
    """The newest `limit` lines, the oldest first. Raises ConfigurationError if the file cannot be read."""
    path = data_dir / FILE_NAME
    try:
        return [json.loads(line) for line in _lines(path)[-limit:]]
    except (OSError, *UNDECODABLE) as error:
        raise ConfigurationError(f"{path} cannot be read: {error!r}") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
