"""Mends what users did to a data directory, while no server runs on it: the way back that needs no login.

Files are changed by `tree_edit`, roles and databases in PostgreSQL's single-user mode, which asks for no role,
password, database or trigger. What is replaced is kept beside. Every repair can be done again without harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT
from aurora_ray.engine.postgres.configuration import (
    AUTO,
    EMPTY_AUTO,
    HBA,
    PG_HBA,
    REFUSED,
    SIGNALS,
    Files,
    without_settings,
)
from aurora_ray.engine.postgres.credentials import make_verifier
from aurora_ray.engine.tree_edit import Edit, edit_tree, read_text
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount

SINGLE_USER_TIMEOUT_S: Final = 600.0  # a recovery is part of it
BEFORE: Final = "aurora.before-repair."  # and the name of a file that was replaced
_MAINTENANCE: Final = ("template1", "postgres", "template0")  # any that is still there
_SILENT: Final = {"log_statement": "none", "log_min_error_statement": "panic", "log_min_duration_statement": "-1"}
_ROW = re.compile(r'^\s*1: datname = "(.*)"\t\(typeid', re.MULTILINE)


class Repair(StrEnum):
    """What can be mended."""

    SETTINGS = "settings"  # all of ALTER SYSTEM's, and postgresql.conf
    ACCESS = "access"  # pg_hba.conf, and what names another one
    ROLES = "roles"  # the superuser: name, login, settings, password; login triggers of all databases
    DATABASE = "database"  # the database postgres: there, and open
    SIGNALS = "signals"  # standby.signal and recovery.signal


@dataclass(frozen=True, slots=True)
class Workshop:
    """A data directory and how programs work on it. `server`: the command line of a server for it, without options that
    users can set."""

    data_dir: Path
    server: tuple[str, ...]
    account: EngineAccount
    env: Mapping[str, str]
    pass_fds: Sequence[int]

    async def repair(self, kinds: Sequence[str], password: str) -> None:
        """Mends all of `kinds` (see Repair). Raises EngineError; then it can be done again."""
        wanted = [Repair(kind) for kind in kinds]
        await edit_tree(self.data_dir, self._edits(wanted), account=self.account, env=self.env, pass_fds=self.pass_fds)
        if Repair.DATABASE in wanted:
            await self._run(_DATABASE_STATEMENTS)
        if Repair.ROLES in wanted:
            await self._run(_role_statements(password))
            for database in _ROW.findall(await self._run(["SELECT datname FROM pg_database"])):
                with contextlib.suppress(EngineError):  # one that is half dropped has no sessions
                    await self._run(["UPDATE pg_event_trigger SET evtenabled = 'D' WHERE evtevent = 'login'"], database)

    def _edits(self, wanted: Sequence[Repair]) -> list[Edit]:
        files, edits = Files.read(self.data_dir), []
        auto = files.auto or ""
        if Repair.ACCESS in wanted:
            edits += self._replaced(HBA, PG_HBA)
            auto = without_settings(auto, {"hba_file", "ident_file"})
        if Repair.SETTINGS in wanted:
            edits += [*self._replaced("postgresql.conf", ""), Edit(REFUSED, None)]
            auto = EMPTY_AUTO
        if auto != (files.auto or ""):
            edits += self._replaced(AUTO, auto)
        if Repair.SIGNALS in wanted:
            edits += [Edit(name, None) for name in SIGNALS]
        return edits

    def _replaced(self, name: str, content: str) -> list[Edit]:
        before = read_text(self.data_dir / name)
        if before == content:
            return []
        kept = [Edit(BEFORE + name, before)] if before is not None else []
        return [*kept, Edit(name, content)]

    async def _run(self, statements: Sequence[str], database: str | None = None) -> str:
        """Runs them in single-user mode; what it prints. Raises EngineError if no database can be opened."""
        complaints = ""
        for name in [database] if database is not None else _MAINTENANCE:
            code, output, complaints = await self._single_user(statements, name)
            if code == 0:
                return output
        raise EngineError(f"PostgreSQL's single-user mode fails (settings may need repair as well): {complaints}")

    async def _single_user(self, statements: Sequence[str], database: str) -> tuple[int, str, str]:
        program, *options = self.server
        silent = [word for name, value in _SILENT.items() for word in ("-c", f"{name}={value}")]
        command = [program, "--single", *options, *silent, "-c", "shared_preload_libraries=", database]
        child = await asyncio.create_subprocess_exec(
            *self.account.command(command, env=self.env),
            env=dict(BASE_ENVIRONMENT),
            pass_fds=tuple(self.pass_fds),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
        )
        try:
            async with asyncio.timeout(SINGLE_USER_TIMEOUT_S):
                output, complaints = await child.communicate("".join(f"{s}\n" for s in statements).encode())
        except BaseException as error:
            if child.returncode is None:
                child.kill()
                await child.wait()
            if isinstance(error, TimeoutError):
                raise EngineError(f"single-user mode took longer than {SINGLE_USER_TIMEOUT_S:g} s") from error
            raise
        lines = [line for line in complaints.decode("utf-8", "replace").splitlines() if "FATAL" in line]
        return child.returncode or 0, output.decode("utf-8", "replace"), " ".join(lines)


_DATABASE_STATEMENTS: Final = (
    "CREATE DATABASE postgres TEMPLATE template0",  # an error if it is there, which does not matter
    "UPDATE pg_database SET datallowconn = true, datconnlimit = -1 WHERE datname = 'postgres'",
    "DELETE FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = 'postgres')",
    "GRANT CONNECT, TEMPORARY ON DATABASE postgres TO PUBLIC",
)


def _role_statements(password: str) -> list[str]:
    """Of the bootstrap superuser, which has the number 10. ALTER ROLE would not rename the session's own user."""
    return [
        "UPDATE pg_authid SET rolname = 'postgres' WHERE oid = 10 "
        "AND NOT EXISTS (SELECT FROM pg_authid WHERE rolname = 'postgres')",
        "UPDATE pg_authid SET rolcanlogin = true, rolsuper = true, rolconnlimit = -1, rolvaliduntil = NULL "
        "WHERE oid = 10",
        f"ALTER ROLE postgres PASSWORD '{make_verifier(password)}'",  # base64, made here
        "DELETE FROM pg_db_role_setting WHERE setrole = 10",
    ]
