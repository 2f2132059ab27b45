"""`python -m tests.regress --engine mysql`

Runs tests of MariaDB's own suite (Debian's package mariadb-test, which is no part of this project) against a writer of
a fleet of its own, through the cluster endpoint, and against a stock server of the same binary on a local disk: the
same tests in the same order, from outside (`mtr --extern`), with the settings that the suite asks for where they can be
set. The same tests must pass. Many fail on both, as they start servers or look into the server's directory. Tests that
end the server, or rebuild the tables of its system, are left out.

Tests come in batches, each on servers that were cleaned, with a time limit. What differs is run again, alone, and
counts if it still differs; `mysql_differences.txt` names what may, each with its reason. What failed on both after
another one had is run again, too: that leaves its tables behind. With --out, outcomes and what the suite printed stay
there, and the next run with it goes on where this one ended.

Prints a summary as JSON; the exit code is 1 if there are differences that nothing explains, 2 if the suite is missing.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.regress.mysql_servers import Server, ours, run_suite, stock

SUITE_DIRS = ("/usr/share/mysql/mysql-test", "/usr/share/mariadb/mariadb-test", "/usr/share/mariadb-test")
PROGRAM = "mysql-test-run.pl"
MISSING = (
    "MariaDB's test suite is not there: install it with `sudo apt-get install --no-install-recommends mariadb-test`"
    " (Debian, Ubuntu), or name its directory by --suite-dir"
)
DIFFERENCES = Path(__file__).with_name("mysql_differences.txt")
LINE = re.compile(r"^(\w+)\.([\w.-]+)(?: '[^']*')?\s+\[ ([a-z-]+) \]", re.MULTILINE)
KINDS = {
    "pass": "pass",
    "fail": "fail",
    "exp-fail": "fail",
    "retry-fail": "fail",
    "skipped": "skip",
    "disabled": "skip",
}
# They end the server, and wait for one that only the suite itself would start: not from outside.
RESTARTS = re.compile(r"(?:restart|shutdown|kill)_mysqld|shutdown_server|^\s*shutdown\b", re.MULTILINE | re.IGNORECASE)
# They rebuild the tables of the system itself, or take them away: what runs on the same server afterwards would fail.
SYSTEM_TABLES = re.compile(
    r"\$MYSQL_UPGRADE|mysql_fix_privilege|^\s*drop table[^;]*\b(?:global_priv|tables_priv)\b",
    re.MULTILINE | re.IGNORECASE,
)
NOT_RUN = "-"  # left out by the suite itself, or cut short
STOCK, OURS = "stock", "ours"


@dataclass(slots=True)
class Found:
    """Outcomes by server and test: pass, fail or skip; of a test that comes in several forms, the worst."""

    outcomes: dict[str, dict[str, str]] = field(default_factory=lambda: {STOCK: {}, OURS: {}})

    def differ(self, tests: Iterable[str]) -> list[str]:
        """Those of them that did not end alike."""
        return [test for test in tests if self.of(STOCK, test) != self.of(OURS, test)]

    def doubtful(self, batch: Iterable[str]) -> list[str]:
        """Those that failed on both after another one had: what that has left may be why."""
        return [test for test in batch if self.pair(test) == "fail/fail"][1:]

    def of(self, server: str, test: str) -> str:
        return self.outcomes[server].get(test, NOT_RUN)

    def pair(self, test: str) -> str:
        return f"{self.of(STOCK, test)}/{self.of(OURS, test)}"


def parse(printed: str) -> dict[str, str]:
    """The outcomes that the suite printed, by the name of the test without its suite's."""
    found: dict[str, str] = {}
    rank = ("skip", "pass", "fail")
    for _, test, how in LINE.findall(printed):
        if (kind := KINDS.get(how)) is not None:
            found[test] = max(found.get(test, kind), kind, key=rank.index)
    return found


def known_differences(text: str) -> dict[str, str]:
    """Reasons by test. A line of the file: a test, a colon, why it may end otherwise than on a stock server."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    parts = (line.partition(":") for line in lines if line)
    return {test.strip(): reason.strip() for test, _, reason in parts}


def main(words: Sequence[str]) -> int:
    """Runs it, as these words on the command line say; the exit code."""
    arguments = _arguments(words)
    suite = next((each for each in arguments.suite_dir if (each / PROGRAM).exists()), None)
    if suite is None:
        sys.stderr.write(MISSING + "\n")
        return 2
    folders = (suite / arguments.suite, suite / "suite" / arguments.suite / "t")
    paths = (path for folder in folders for path in folder.glob("*.test"))
    wanted = [path for path in paths if re.search(arguments.tests, path.stem)]
    tests = sorted(path.stem for path in wanted if not _left_out(path.read_text(errors="replace")))
    with tempfile.TemporaryDirectory(prefix="aurora-mtr-") as made:
        beside = Path(made)
        beside.chmod(0o711)
        out = arguments.out or beside / "out"
        with stock(beside, suite) as first, ours(beside, suite) as second:
            run = _Run({STOCK: first, OURS: second}, suite, arguments, out)
            differences = run.all(tests)
    return _tell(run.found, tests, differences)


def _left_out(test: str) -> bool:
    return RESTARTS.search(test) is not None or SYSTEM_TABLES.search(test) is not None


class _Run:
    """One run of the suite on both servers."""

    def __init__(self, servers: Mapping[str, Server], suite: Path, arguments: argparse.Namespace, out: Path) -> None:
        self._servers, self._suite, self._arguments, self._out = servers, suite, arguments, out
        self._kept = out / "outcomes.json"
        self._deadline_s = time.monotonic() + 60 * arguments.minutes
        out.mkdir(parents=True, exist_ok=True)
        self.found = Found(json.loads(self._kept.read_text())) if self._kept.exists() else Found()

    def all(self, tests: Sequence[str]) -> list[str]:
        """All that were not run yet, until the time is up; the differences that stay."""
        left = [test for test in tests if test not in self.found.outcomes[STOCK]]
        size = self._arguments.batch
        differences = [test for test in self.found.differ(tests) if test not in left]
        for at in range(0, len(left), size):
            if time.monotonic() > self._deadline_s:
                break
            batch = left[at : at + size]
            self._both(batch, f"{batch[0]}-{batch[-1]}")
            for test in (*self.found.differ(batch), *self.found.doubtful(batch)):
                self._both([test], test)
                differences += self.found.differ([test])
            self._kept.write_text(json.dumps(self.found.outcomes, indent=0, sort_keys=True))
            counted = Counter(map(self.found.pair, batch))
            told = ", ".join(f"{count} {pair}" for pair, count in counted.most_common())
            sys.stderr.write(f"{at + len(batch):5d} of {len(left)}  {batch[0]} to {batch[-1]}  stock/ours: {told}\n")
        return differences

    def _both(self, batch: Sequence[str], name: str) -> None:
        limit_s = self._arguments.seconds + 5.0 * len(batch)
        with ThreadPoolExecutor(len(self._servers)) as pool:
            runs = {
                which: pool.submit(run_suite, server, self._suite, self._arguments.suite, batch, limit_s)
                for which, server in self._servers.items()
            }
            for which, running in runs.items():
                printed = running.result()
                (self._out / f"{name}.{which}.txt").write_text(printed)
                outcomes = parse(printed)
                self.found.outcomes[which] |= {test: outcomes.get(test, NOT_RUN) for test in batch}


def _tell(found: Found, tests: Sequence[str], differences: Sequence[str]) -> int:
    known = known_differences(DIFFERENCES.read_text())
    ran = [test for test in tests if test in found.outcomes[STOCK]]
    unexplained = {test: found.pair(test) for test in differences if test not in known}
    summary = {
        "tests": len(ran),
        "stock/ours": dict(Counter(map(found.pair, ran)).most_common()),
        "differences, explained": {test: known[test] for test in differences if test in known},
        "differences": unexplained,
    }
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    return 1 if unexplained else 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.regress --engine mysql", description=__doc__.partition("\n\n")[2]
    )
    places = [Path(each) for each in SUITE_DIRS]
    parser.add_argument(
        "--suite-dir", type=Path, nargs=1, default=places, help=f"where {PROGRAM} is, if not where packages put it"
    )
    parser.add_argument("--suite", default="main", help="which of its suites (default: main)")
    parser.add_argument("--tests", default="", help="a regular expression: those whose names it is found in")
    parser.add_argument("--batch", type=int, default=25, help="tests between two cleanings (default: 25)")
    parser.add_argument("--seconds", type=float, default=120.0, help="for a batch, and 5 more for each of its tests")
    parser.add_argument("--minutes", type=float, default=240.0, help="no new batch after so many (default: 240)")
    parser.add_argument("--out", type=Path, help="where outcomes are kept, and a run that was cut short goes on")
    return parser.parse_args(words)
