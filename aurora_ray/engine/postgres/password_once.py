"""The superuser's password, given to a server that has none yet: what somebody set stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

if TYPE_CHECKING:
    import psycopg

# No statement of a session that changes a password may reach the server's log, not even in an error.
SILENT: Final = (
    "-c log_statement=none -c log_min_duration_statement=-1 -c log_min_duration_sample=-1 "
    "-c log_transaction_sample_rate=0 -c log_min_error_statement=panic -c track_activities=off"
)


async def give(session: psycopg.AsyncConnection[Any], role: str, password: str) -> None:
    """Makes `password` that of `role`, over a session with the options `SILENT`. Only a verifier is sent."""
    cursor = await session.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [role])
    row = await cursor.fetchone()
    if row is not None and row[0] is not None:
        return
    verifier = session.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
    await session.execute(statement.format(sql.Identifier(role), sql.Literal(verifier.decode())))
