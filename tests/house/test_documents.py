"""What the documents name is there: files, links, targets of make, commands and their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from aurora_ray.cli.main import app
from tests.house.source import PACKAGE, ROOT, files

DOCUMENTS = [path for path in files(".md") if "results" not in path.parts]
# Of a fleet's data directory, or of an engine's.
RUNTIME_FILES = ("fleet.toml",)
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*\.(py|c|h|proto|toml|json|md)")
_QUOTED = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"\baurora ([a-z][a-z-]*[^`#]*)")


def said(document: Path, pattern: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Each match's first group, with its line."""
    text = document.read_text(encoding="utf-8")
    for match in pattern.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match[1]


def is_there(name: str, document: Path) -> bool:
    if "/" not in name:
        return name in RUNTIME_FILES or any(path.name == name for path in files())
    return any((base / name).exists() for base in (ROOT, PACKAGE, document.parent))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_are_there(document: Path) -> None:
    named = [(line, name) for line, name in said(document, _QUOTED) if _FILE.fullmatch(name)]
    links = [(line, name) for line, name in said(document, re.compile(r"\]\(([^)#\s]+)")) if "://" not in name]
    gone = [f"{line}: {name}" for line, name in named if not is_there(name, document)]
    gone += [f"{line}: {name}" for line, name in links if not (document.parent / name).exists()]
    assert not gone, "\n".join(gone)


def test_targets_of_make_that_are_named_are_there() -> None:
    rules = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {name for rule in rules for name in rule.split()}
    gone = [
        f"{document.relative_to(ROOT)}:{line}: make {name}"
        for document in DOCUMENTS
        for line, name in said(document, re.compile(r"(?:`|^    )make ([a-z][\w-]*)", re.MULTILINE))
        if name not in targets
    ]
    assert not gone, "\n".join(gone)


def commands(document: Path) -> Iterator[tuple[int, list[str]]]:
    """The words after each `aurora`, in code."""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        for code in [line] if line.startswith("    ") else _QUOTED.findall(line):
            for match in _COMMAND.finditer(code):
                words = re.split(r"\s{2,}|\s\|\s|\saurora\s", match[1])[0]
                yield number, shlex.split(re.sub(r"[\[\](){}|…']", " ", words))


def unknown(words: list[str]) -> str:
    """What of a command the program does not know; empty if it knows all."""
    command: Any = typer.main.get_command(app)
    for number, word in enumerate(words):
        if not hasattr(command, "commands"):
            options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
            given = [each.partition("=")[0] for each in words[number:] if re.match(r"--[a-z]|-[a-z]$", each)]
            return next((each for each in given if each not in options), "")
        if word not in command.commands:
            return word
        command = command.commands[word]
    return ""


def test_commands_that_are_named_are_there() -> None:
    looked_at, gone = 0, []
    for document in DOCUMENTS:
        for line, words in commands(document):
            looked_at += 1
            if (word := unknown(words)) != "":
                gone.append(f"{document.relative_to(ROOT)}:{line}: aurora {' '.join(words)}: there is no {word}")
    assert not gone, "\n".join(gone)
    assert looked_at > 50


def test_what_is_gone_would_be_seen() -> None:
    assert unknown(["failover", "demo", "--target", "demo-2"]) == ""
    assert unknown(["global", "split", "g"]) == "split"
    assert unknown(["failover", "--sideways"]) == "--sideways"
    assert not is_there("compute/gone.py", ROOT / "README.md")
