"""Results of benchmarks that are not suites (failover, repair, tracing), for the report.

Each is a JSON file whose "suite" names the module that wrote it. Where that module can show its result (a `show(result,
console)` beside it), this is what the report has; otherwise the file's own figures, as they are.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.markdown import Page, table

# suite: (module and class that load the file, module with `show` and perhaps `draw`)
_SHOWN: Final = {"failover": ("benchmarks.failover", "FailoverResult", "benchmarks.failover_report")}
_PLAIN = (str, int, float, bool)


def other_section(values: Mapping[str, Any], path: Path, charts_dir: Path, base: Path) -> list[str]:
    """Markdown lines."""
    source = os.path.relpath(path, base)
    lines = [f"## {path.stem}", "", f"{_heading(values)}Raw figures: [{source}]({source}).", ""]
    shown = _SHOWN.get(str(values.get("suite")))
    if shown is None:
        return [*lines, *_as_it_is(values)]
    loader, name, shower = shown
    result = getattr(importlib.import_module(loader), name).load(path)
    page = Page()
    reporting = importlib.import_module(shower)
    reporting.show(result, page)
    charts = reporting.draw(result, path.stem, charts_dir) if hasattr(reporting, "draw") else []
    return [*lines, *page.lines, *(f"![{chart.stem}]({os.path.relpath(chart, base)})\n" for chart in charts)]


def _heading(values: Mapping[str, Any]) -> str:
    machine, commit = values.get("machine") or {}, values.get("commit") or {}
    facts = []
    if "cpu" in machine:
        facts.append(f"{machine.get('cores_usable', '?')} cores {machine['cpu']}")
    if "id" in commit:
        facts.append(f"commit {str(commit['id'])[:10]}{' with changes' if commit.get('modified') else ''}")
    facts += [str(values[name]) for name in ("started",) if name in values]
    return ", ".join(facts) + ". " if facts else ""


def _as_it_is(values: Mapping[str, Any]) -> list[str]:
    """Single values in one table, each list of flat objects in a table of its own; the rest is in the file."""
    single = [[name, _text(value)] for name, value in values.items() if isinstance(value, _PLAIN)]
    lines = table(["", "value"], single)
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines += [f"**{name}**", "", *_rows(value)]
    return lines


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, _PLAIN)))
    return table(names, [[_text(row.get(name, "")) for name in names] for row in rows])


def _text(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
