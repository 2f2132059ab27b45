"""When writers that are away were lost, in a file: a control plane that dies in a failover leaves it to the next one.

Nothing but the failover's trace depends on it.

`<data_dir>/outages.json`: {instance id: {"why": str, "good_at_ns": Unix time, "noticed_ns": Unix time}}
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import replace_file
from aurora_ray.errors import UNDECODABLE

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "outages.json"


@dataclass(frozen=True, slots=True)
class Outage:
    """Why a writer is away; when it was last known to be good, and when it was seen not to be (Unix times in ns)."""

    why: str
    good_at_ns: int
    noticed_ns: int


class Outages:
    """By instance. What cannot be written or read is forgotten: a trace is not worth a failover."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._noted: dict[str, Outage] = {}

    def load(self) -> dict[str, Outage]:
        """What an earlier control plane has noted and not struck out."""
        with contextlib.suppress(OSError, *UNDECODABLE):
            document = json.loads(self._path.read_text())
            self._noted = {
                str(name): Outage(str(each["why"]), int(each["good_at_ns"]), int(each["noticed_ns"]))
                for name, each in document.items()
            }
        return dict(self._noted)

    def note(self, instance_id: str, outage: Outage) -> None:
        """It begins."""
        self._noted[instance_id] = outage
        self._save()

    def strike(self, instance_id: str) -> None:
        """It is over."""
        if self._noted.pop(instance_id, None) is not None:
            self._save()

    def forget(self) -> None:
        """All that are noted: the fleet is stopped in order, and whoever is away then is not lost."""
        self._noted.clear()
        self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            if not self._noted:
                self._path.unlink(missing_ok=True)
                return
            text = json.dumps({name: asdict(outage) for name, outage in self._noted.items()})
            replace_file(self._path, text, durable=False)  # on the way to a failover, and about nothing but its trace
