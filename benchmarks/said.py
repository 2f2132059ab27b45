"""The outcome of a benchmark as sentences: printed as they come, and kept with the raw figures for the report."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Said:
    """Sentences of one run of `suite`, which begins now."""

    def __init__(self, suite: str) -> None:
        self._suite = suite
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._sentences: list[str] = []

    def __call__(self, sentence: str) -> None:
        """One more."""
        self._sentences.append(sentence)
        typer.echo(sentence)

    def all(self, sentences: Iterable[str]) -> None:
        """More."""
        for sentence in sentences:
            self(sentence)

    def save(self, path: Path, **figures: Any) -> None:
        """What was said, with what it was made of, as JSON. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"suite": self._suite, "started": self._began, "commit": machine.commit()}
        facts |= {"machine": machine.describe(path.parent), "said": self._sentences}
        path.write_text(json.dumps({**facts, **figures}, indent=1) + "\n")
        typer.echo(f"Raw figures: {os.path.relpath(path)}")
