"""The parameters that a MariaDB knows, asked from the server itself, and a check of what somebody wants to set.

`information_schema.system_variables` says of each its type, bounds and values, whether a command line takes it, and
whether it can be changed while the server runs. It is asked once per installation, from a server on an empty directory.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import find_account
from aurora_ray.engine.mariadb.image import run_statements
from aurora_ray.engine.mariadb.install import SERVER, basedir
from aurora_ray.engine.mariadb.settings import canonical, refusal
from aurora_ray.engine.prepared import run_program
from aurora_ray.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall

ASK_TIMEOUT_S: Final = 60.0
COLUMNS: Final = (
    "variable_name, variable_type, coalesce(numeric_min_value, ''), coalesce(numeric_max_value, ''), "
    "coalesce(enum_value_list, ''), read_only, coalesce(command_line_argument, '')"
)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER = re.compile(r"(-?\d+)([KMGT]?)", re.IGNORECASE)
_REAL = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_SWITCH: Final = frozenset({"ON", "OFF", "0", "1", "TRUE", "FALSE"})


@dataclass(frozen=True, slots=True)
class Known:
    """A parameter. `least`, `most`: of numbers, else empty."""

    name: str
    kind: str
    least: str
    most: str
    values: tuple[str, ...]
    read_only: bool
    settable: bool


def check_changes(
    install: EngineInstall, changes: Mapping[str, str | None], engine_user: str = "aurora-ray"
) -> dict[str, str]:
    """What each change needs: "dynamic" or "pending-reboot", by canonical name; a value of None is a reset.

    Raises UsageError for an unknown name, a value that the server does not take, or what is not the user's to set.
    """
    known = catalogue(install, engine_user)
    needs: dict[str, str] = {}
    for given, value in changes.items():
        name = canonical(given)
        parameter = known.get(name)
        if value is not None:
            why = refusal(name)
            if why is not None:
                raise UsageError(why)
            if parameter is None or not parameter.settable:
                raise UsageError(f"the server knows no parameter {name} that can be set")
            check_value(parameter, value)
        needs[name] = "pending-reboot" if parameter is None or parameter.read_only else "dynamic"
    return needs


def check_value(known: Known, value: str) -> None:
    """Raises UsageError for a value that the server would refuse, or change."""
    if any(ord(letter) < 32 for letter in value):
        raise UsageError(f"the value of {known.name} must be one line")
    if known.kind == "BOOLEAN":
        _check(value.upper() in _SWITCH, known, value, "ON or OFF")
    elif known.kind == "ENUM" and known.values:
        allowed = {each.upper() for each in known.values}
        _check(value.upper() in allowed or value.isdigit(), known, value, ", ".join(known.values))
    elif known.kind in ("SET", "FLAGSET"):
        allowed = {each.upper() for each in known.values}
        given = [word.partition("=")[0].strip().upper() for word in value.split(",") if word]
        _check(all(word in allowed for word in given), known, value, ", ".join(known.values))
    elif known.kind == "DOUBLE":
        _check(_REAL.fullmatch(value) is not None, known, value, "a number")
    elif known.least:
        number = number_of(value)
        within = number is not None and int(known.least) <= number <= int(known.most)
        _check(within, known, value, f"a number from {known.least} to {known.most}")


def number_of(value: str) -> int | None:
    """A whole number, with the units that option files take; None if it is none."""
    match = _NUMBER.fullmatch(value.strip())
    return int(match[1]) * _UNITS[match[2].upper()] if match else None


def _check(holds: bool, known: Known, value: str, what: str) -> None:
    if not holds:
        raise UsageError(f"{known.name} cannot be {value!r}: it is {what}")


@lru_cache(maxsize=8)
def catalogue(install: EngineInstall, engine_user: str) -> dict[str, Known]:
    """All that the server lists, by name. Raises ConfigurationError, EngineError. Blocks for a second, once."""
    account = find_account(engine_user)
    beside = Path(tempfile.mkdtemp(prefix="aurora-ray-"))
    try:
        account.own(beside, 0o700)
        answer = beside / "variables"
        options = [
            f"--basedir={basedir(install)}",
            f"--datadir={beside}",
            f"--tmpdir={beside}",
            "--skip-grant-tables",
            "--innodb-use-native-aio=OFF",
            "--innodb-log-file-size=4M",
            "--innodb-temp-data-file-path=ibtmp1:1M:autoextend",
            "--silent-startup",
        ]
        ask = f"SELECT {COLUMNS} FROM information_schema.system_variables INTO OUTFILE '{answer}'"  # noqa: S608
        run_statements(install, account, options, beside, (ask,), timeout_s=ASK_TIMEOUT_S)
        rows = [line.split("\t") for line in answer.read_text("utf-8", "replace").splitlines()]
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    known = [_known(row) for row in rows if len(row) == 7]
    if not known:
        raise EngineError(f"MariaDB {install.version} lists no parameters")
    taken = _options(install, account)
    return {each.name: replace(each, settable=each.settable or each.name in taken) for each in known}


def _options(install: EngineInstall, account: EngineAccount) -> set[str]:
    """What a start takes: some of the variables do not say of themselves that they are options as well."""
    server = str(install.bin_dir / SERVER)
    table = run_program(account, [server, "--no-defaults", "--verbose", "--help"], timeout_s=ASK_TIMEOUT_S).rpartition(
        "Variables (--variable-name=value)"
    )[2]
    return {canonical(line.split()[0]) for line in table.splitlines() if line.strip()}


def _known(row: list[str]) -> Known:
    name, kind, least, most, values, read_only, argument = row
    return Known(
        name.lower(), kind, least, most, tuple(filter(None, values.split(","))), read_only == "YES", bool(argument)
    )
