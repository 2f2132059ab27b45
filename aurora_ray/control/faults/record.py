"""The faults on purpose that are in force, in a file: they outlive a control plane, and end with the fleet.

They are not part of the declared state, because a control plane that is itself cut off from storage must know of them.

`<data_dir>/chaos.json`: {"islands": {target: {"parties": [name, ...], "until_s": Unix time or null}},
                          "away": {node id: Unix time until which it is not started},
                          "paused": {target: {"pid": its process, "until_s": Unix time}}}

Pauses are here to be told only: they end by themselves, whoever lives to see it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from aurora_ray.durable import replace_file
from aurora_ray.errors import UNDECODABLE

FILE_NAME: Final = "chaos.json"


@dataclass(frozen=True, slots=True)
class Island:
    """Parties that are cut off from all others; `until_s` (Unix time), or until healed."""

    parties: frozenset[str]
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """A process that stands still until a Unix time."""

    pid: int
    until_s: float


@dataclass(slots=True)
class Faults:
    """`islands` by the target of the command that made them; `away_until_s` by storage node; `paused` by "node:ID" or
    instance."""

    path: Path
    islands: dict[str, Island] = field(default_factory=dict)
    away_until_s: dict[str, float] = field(default_factory=dict)
    paused: dict[str, Pause] = field(default_factory=dict)

    @classmethod
    def load(cls, data_dir: Path) -> Faults:
        """What is in force; nothing if there is no file, or one that cannot be read."""
        path = data_dir / FILE_NAME
        try:
            document = json.loads(path.read_text())
            islands = {
                str(target): Island(
                    frozenset(map(str, island["parties"])),
                    None if island["until_s"] is None else float(island["until_s"]),
                )
                for target, island in document["islands"].items()
            }
            away = {str(node_id): float(until_s) for node_id, until_s in document["away"].items()}
            paused = {
                str(target): Pause(int(pause["pid"]), float(pause["until_s"]))
                for target, pause in document.get("paused", {}).items()
            }
        except (OSError, *UNDECODABLE):
            return cls(path)
        return cls(path, islands, away, paused)

    def save(self) -> None:
        """Writes the file, whole, or removes it when nothing is in force."""
        if not self.islands and not self.away_until_s and not self.paused:
            self.path.unlink(missing_ok=True)
            return
        islands = {
            target: {"parties": sorted(island.parties), "until_s": island.until_s}
            for target, island in self.islands.items()
        }
        paused = {target: asdict(pause) for target, pause in self.paused.items()}
        text = json.dumps({"islands": islands, "away": self.away_until_s, "paused": paused})
        replace_file(self.path, text, durable=False)  # processes that a power cut ended are cut off from nobody

    def clear(self) -> None:
        """All of them are over."""
        self.islands.clear()
        self.away_until_s.clear()
        self.paused.clear()
        self.save()
