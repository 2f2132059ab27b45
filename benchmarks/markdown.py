"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines, with an empty one at the end; the first column is text, the others are figures."""
    titles = [_cell(title) for title in head]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" + "---:|" * (len(titles) - 1)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]


class Page:
    """Takes what a console would print, tables and lines, and makes Markdown of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, what: Any = "", **_style: Any) -> None:
        """As rich's Console.print; styles mean nothing here."""
        if not isinstance(what, Table):
            self.lines += [str(what), ""]
            return
        if what.title:
            self.lines += [f"**{_plain(what.title)}**", ""]
        columns = [[_plain(cell) for cell in column.cells] for column in what.columns]
        self.lines += table((_plain(column.header) for column in what.columns), zip(*columns, strict=True))


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ")


def _plain(value: Any) -> str:
    return value.plain if isinstance(value, Text) else str(value)
