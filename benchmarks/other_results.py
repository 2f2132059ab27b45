"""Results of benchmarks that are not suites (failover, repair, tracing), for the report.

Each is a JSON file whose "suite" names the module that wrote it: `benchmarks.repair` has a dataclass RepairResult, and
it or `benchmarks.repair_report` a function `show(result, console)`, perhaps also `draw(result, stem, directory)`.
Another file may have its sentences in it (`said.py`); of one with neither the report has the figures as they are.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import Page, table

_PLAIN = (str, int, float, bool)


def other_section(values: Mapping[str, Any], path: Path, charts_dir: Path, base: Path) -> list[str]:
    """Markdown lines."""
    source = os.path.relpath(path, base)
    lines = [f"## {path.stem}", "", f"{_heading(values)}Raw figures: [{source}]({source}).", ""]
    suite = str(values.get("suite", ""))
    module = _module(suite)
    kind = getattr(module, f"{suite.capitalize()}Result", None)
    reporting = _module(f"{suite}_report") or module
    if kind is None or not hasattr(reporting, "show"):
        return [*lines, *_as_it_is(values)]
    try:
        result = restored(kind, values)
    except TypeError:  # something that this version has and the file has not
        return [
            *lines,
            "Written by another version of this benchmark; its figures as they are.",
            "",
            *_as_it_is(values),
        ]
    page = Page()
    reporting.show(result, page)
    charts = reporting.draw(result, path.stem, charts_dir) if hasattr(reporting, "draw") else []
    return [*lines, *page.lines, *(f"![{chart.stem}]({os.path.relpath(chart, base)})\n" for chart in charts)]


def restored(kind: Any, value: Any) -> Any:
    """The inverse of dataclasses.asdict, from JSON, for lists, optional values and dataclasses within each other."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        kinds = typing.get_type_hints(kind)
        known = {name: restored(kinds[name], each) for name, each in value.items() if name in kinds}
        return typing.cast("Any", kind)(**known)
    if origin is list and isinstance(value, list):
        return [restored(arguments[0], each) for each in value]
    if origin in (typing.Union, types.UnionType) and value is not None:
        return restored(next(each for each in arguments if each is not types.NoneType), value)
    return value


def _module(name: str) -> Any:
    full = f"benchmarks.{name}"
    if not name.isidentifier() or importlib.util.find_spec(full) is None:
        return None
    return importlib.import_module(full)


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
    """The sentences, or single values in a table and each list of flat objects in a table; the rest is in the file."""
    if said := values.get("said"):
        return [*(f"- {sentence}" for sentence in said), ""]
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
