"""`python -m tests.regress [--engine postgres|mysql] ...`: what else there is to say, `--help` of each tells."""

import argparse
import sys

from tests.regress import mysql, postgres

SUITES = {"postgres": postgres.main, "mysql": mysql.main}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--engine", choices=sorted(SUITES), default="postgres")
    chosen, words = parser.parse_known_args()
    return SUITES[chosen.engine](words)


if __name__ == "__main__":
    sys.exit(main())
