"""Run a command and measure what it reaches; report what was reached."""

import argparse
import os
import sys
from pathlib import Path

from tests.coverage.plan import environment, prepare
from tests.coverage.report import complaints, floor_percent, lines, reached
from tests.house.source import PACKAGE


def main(argv: list[str]) -> int:
    """1 if a report finds too little; a command that is run takes the place of this process."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run a command, and add what it reaches to what was found there before")
    run.add_argument("directory", type=Path)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND …")
    report = verbs.add_parser("report", help="say what did not run; fails below the floor in pyproject.toml")
    report.add_argument("directory", type=Path)
    options = parser.parse_args(argv)
    if options.verb == "run":
        directory = options.directory.absolute()
        prepare(directory, PACKAGE)
        command = options.command[1:] if options.command[:1] == ["--"] else options.command
        os.execvpe(command[0], command, environment(directory))  # noqa: S606 - signals go to the command, its end is ours
    modules, floor = reached(options.directory), floor_percent()
    wrong = complaints(modules, floor)
    sys.stdout.write("\n".join([*lines(modules, floor), *wrong]) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
