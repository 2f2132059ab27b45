"""The accounts of a server, in SQL: the owner's, and ours, which each start makes anew.

The owner's (`admin`) may do what a database needs, and not what changes the server under it: no SUPER, FILE, SHUTDOWN,
BINLOG ADMIN. As with RDS, it may write the system's tables, and who does that may lock himself out: `aurora repair`
leads back, and our own account comes back with each start.

Ours (`aurora_ray`) exists for the private socket only. Its password is new in each run, and lies in a file beside that
socket, in a directory that only the engine's account and root can enter.
"""

from __future__ import annotations

from typing import Final

from aurora_ray.engine.mariadb.credentials import native_hash

OWNER: Final = "admin"
OURS: Final = "aurora_ray"
_PRIVILEGES: Final = (
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "CREATE",
    "DROP",
    "RELOAD",
    "PROCESS",
    "REFERENCES",
    "INDEX",
    "ALTER",
    "SHOW DATABASES",
    "CREATE TEMPORARY TABLES",
    "LOCK TABLES",
    "EXECUTE",
    "REPLICATION SLAVE",
    "REPLICATION CLIENT",
    "CREATE VIEW",
    "SHOW VIEW",
    "CREATE ROUTINE",
    "ALTER ROUTINE",
    "CREATE USER",
    "EVENT",
    "TRIGGER",
    "DELETE HISTORY",
    "CONNECTION ADMIN",
    "SET USER",
)
_SILENT: Final = "SET SESSION sql_log_bin = 0"  # our account is of each server alone
_NO_PASSWORD: Final = "invalid"  # noqa: S105  (what no password hashes to)


def at_first() -> tuple[str, ...]:
    """What a prepared data directory gets: the owner, without a password yet, and nobody else that can log in."""
    return (
        _SILENT,
        "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys'",
        "DELETE FROM mysql.db",
        "DELETE FROM mysql.proxies_priv",
        "FLUSH PRIVILEGES",
        *owner(_NO_PASSWORD),
    )


def owner(hashed: str) -> tuple[str, ...]:
    """The owner's account with this hash of a password, made anew."""
    return (
        f"CREATE OR REPLACE USER '{OWNER}'@'%' IDENTIFIED VIA mysql_native_password USING '{hashed}'",
        f"GRANT {', '.join(_PRIVILEGES)} ON *.* TO '{OWNER}'@'%' WITH GRANT OPTION",
    )


def at_start(password: str) -> tuple[str, ...]:
    """What each start does: our account, with this password."""
    return (
        _SILENT,
        f"CREATE OR REPLACE USER '{OURS}'@'localhost' IDENTIFIED VIA mysql_native_password "
        f"USING '{native_hash(password)}'",
        f"GRANT ALL PRIVILEGES ON *.* TO '{OURS}'@'localhost' WITH GRANT OPTION",
    )


NEW_OWNER: Final = "SELECT count(*) FROM mysql.user WHERE (User, Host, authentication_string) = (%s, '%%', %s)"
NEW_OWNER_IS: Final = (OWNER, _NO_PASSWORD)


def give(password: str) -> tuple[str, ...]:
    """Makes it the owner's password. The server is sent a hash, and its general log none of it; readers follow."""
    return (
        "SET SESSION sql_log_off = 1",
        f"ALTER USER '{OWNER}'@'%' IDENTIFIED VIA mysql_native_password USING '{native_hash(password)}'",
    )
