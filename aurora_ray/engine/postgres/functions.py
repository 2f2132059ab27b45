"""Functions in pg_catalog of every database: what drivers for Amazon Aurora ask, and reading one's own writes.

They are written in SQL over the settings that our module shows (src/facts.c), so they depend on no library: in a server
without the module they answer as if there were no fleet. pg_dump leaves out what is in pg_catalog. New clusters have
them from their image, so databases that are made later have them from their template; a server that finds a database
without them, of an earlier version, puts them there after its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from aurora_ray.engine.tree_edit import Edit, read_text

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import psycopg

VERSION: Final = 4  # of what follows; a higher one is put into all databases
# In the data directory: the version that all databases have. Like all *.conf it is there when a mount is.
NOTE: Final = "aurora.functions.conf"
NOTED: Final = f"{VERSION}\n"
TIMEOUT_S: Final = 30.0
CLOSED_TEMPLATE: Final = "template0"
# Whatever users have set for their databases; a lock that somebody holds is not waited for for ever.
_OPTIONS: Final = "-c default_transaction_read_only=off -c lock_timeout=5s -c log_min_error_statement=panic"
MARK: Final = f"aurora-ray functions {VERSION}"
IS_THERE: Final = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace "
    "AND p.proname = 'aurora_version' AND pg_catalog.obj_description(p.oid, 'pg_proc') = %s)"
)

_ROWS: Final = (
    "pg_catalog.json_to_recordset(COALESCE(NULLIF(pg_catalog.current_setting('aurora.replica_status', true), ''), "
    "'[]')::json) AS r(server_id text, instance text, host_id text, session_id text, cpu double precision, "
    "replica_lag_in_msec double precision, last_update double precision)"
)
# Of a global cluster: see told.tell_replicas. Elsewhere there are no rows.
_REGIONS: Final = (
    "pg_catalog.json_to_recordset(COALESCE(NULLIF(pg_catalog.current_setting('aurora.replica_status', true), '')::json "
    "-> 0 -> 'regions', '[]'::json)) AS g(aws_region text, lsn bigint, lag_in_msec double precision, "
    "at double precision, instances json)"
)
_MEMBERS: Final = (
    "pg_catalog.json_to_recordset(g.instances) AS r(server_id text, host_id text, session_id text, lsn bigint, "
    "replica_lag_in_msec double precision)"
)
# The session came by one of the cluster's own addresses, see control/model/addresses.py: a driver makes such addresses
# out of what it is told here, so it is told the part of them that is the instance's.
_OWN_ADDRESS: Final = (
    "COALESCE(pg_catalog.inet_server_addr() << '127.0.0.0/16'::inet "
    "AND NOT pg_catalog.inet_server_addr() << '127.0.0.0/22'::inet, false)"
)

# ruff: noqa: S608 - all is constant
# A line each: single-user mode, which makes the image, takes the end of a line for the end of a statement.
STATEMENTS: Final = (
    "CREATE OR REPLACE FUNCTION pg_catalog.aurora_version() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE "
    "RETURN pg_catalog.current_setting('aurora.version', true)",
    "CREATE OR REPLACE FUNCTION pg_catalog.aurora_replica_status(OUT server_id text, OUT session_id text, "
    "OUT cpu double precision, OUT replica_lag_in_msec double precision, OUT last_update_timestamp timestamptz) "
    "RETURNS SETOF record LANGUAGE sql STABLE PARALLEL RESTRICTED BEGIN ATOMIC "
    f"SELECT CASE WHEN {_OWN_ADDRESS} THEN r.host_id ELSE r.server_id END, "
    f"r.session_id, r.cpu, r.replica_lag_in_msec, pg_catalog.to_timestamp(r.last_update) FROM {_ROWS}; END",
    "CREATE OR REPLACE FUNCTION pg_catalog.aurora_db_instance_identifier() RETURNS text LANGUAGE sql STABLE "
    f"PARALLEL RESTRICTED RETURN COALESCE((SELECT CASE WHEN {_OWN_ADDRESS} THEN r.host_id ELSE r.server_id END "
    f"FROM {_ROWS} WHERE COALESCE(r.instance, r.server_id) = pg_catalog.current_setting('aurora.instance', true)), "
    "pg_catalog.current_setting('aurora.instance', true))",
    "CREATE OR REPLACE FUNCTION pg_catalog.aurora_global_db_status(OUT aws_region text, "
    "OUT highest_lsn_written bigint, OUT durability_lag_in_msec double precision, "
    "OUT rpo_lag_in_msec double precision, OUT last_lag_calculation_time timestamptz, "
    "OUT feedback_epoch bigint, OUT feedback_xmin bigint) "
    "RETURNS SETOF record LANGUAGE sql STABLE PARALLEL RESTRICTED BEGIN ATOMIC "
    "SELECT g.aws_region, g.lsn, g.lag_in_msec, g.lag_in_msec, pg_catalog.to_timestamp(g.at), 0::bigint, NULL::bigint "
    f"FROM {_REGIONS}; END",
    "CREATE OR REPLACE FUNCTION pg_catalog.aurora_global_db_instance_status(OUT server_id text, OUT session_id text, "
    "OUT aws_region text, OUT durable_lsn bigint, OUT highest_lsn_rcvd bigint, OUT feedback_epoch bigint, "
    "OUT feedback_xmin bigint, OUT oldest_read_view_lsn bigint, OUT visibility_lag_in_msec double precision) "
    "RETURNS SETOF record LANGUAGE sql STABLE PARALLEL RESTRICTED BEGIN ATOMIC "
    f"SELECT CASE WHEN {_OWN_ADDRESS} THEN r.host_id ELSE r.server_id END, r.session_id, "
    "g.aws_region, g.lsn, r.lsn, 0::bigint, NULL::bigint, r.lsn, "
    "CASE WHEN r.session_id = 'MASTER_SESSION_ID' THEN NULL ELSE r.replica_lag_in_msec + "
    "GREATEST(g.lag_in_msec, 0) END "
    f"FROM {_REGIONS} CROSS JOIN LATERAL {_MEMBERS}; END",
    "CREATE OR REPLACE FUNCTION pg_catalog.aurora_commit_lsn() RETURNS pg_lsn LANGUAGE sql VOLATILE "
    "RETURN CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() "
    "ELSE COALESCE(NULLIF(pg_catalog.current_setting('aurora.commit_lsn', true), '')::pg_lsn, "
    "pg_catalog.pg_current_wal_insert_lsn()) END",
    "CREATE OR REPLACE FUNCTION pg_catalog.aurora_wait_lsn(lsn pg_lsn, timeout_ms integer DEFAULT 5000) "
    "RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$ "
    "DECLARE ends timestamptz := clock_timestamp() + timeout_ms * interval '1 millisecond'; pause float8 := 0.0005; "
    "BEGIN LOOP "
    "IF NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= lsn THEN RETURN true; END IF; "
    "IF clock_timestamp() >= ends THEN RETURN false; END IF; "
    "PERFORM pg_sleep(pause); pause := least(pause * 1.5, 0.01); "
    "END LOOP; END $$",
    f"COMMENT ON FUNCTION pg_catalog.aurora_version() IS '{MARK}'",
)


def missing(data_dir: Path) -> Edit | None:
    """What is to be noted in the data directory once all databases have the functions; None if it stands there."""
    return None if read_text(data_dir / NOTE) == NOTED else Edit(NOTE, NOTED)


class Session(Protocol):
    """How a session of the administrator is opened."""

    def __call__(
        self, timeout_s: float, *, options: str = "", database: str = "postgres"
    ) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """Everything in it must happen within the timeout. Raises EngineError."""


async def complete(session: Session) -> None:
    """Puts the functions into every database that lacks them and can be connected to; and into the template that
    nobody connects to, which is closed again, also if an earlier try ended before that. Raises EngineError if one could
    not get them."""
    async with session(TIMEOUT_S, options=_OPTIONS) as main:
        cursor = await main.execute("SELECT datname, datallowconn FROM pg_database ORDER BY datname")
        for name, open_ in await cursor.fetchall():
            if name == CLOSED_TEMPLATE:
                await main.execute(f"ALTER DATABASE {CLOSED_TEMPLATE} ALLOW_CONNECTIONS true")
                try:
                    await _complete_one(session, name)
                finally:
                    await main.execute(f"ALTER DATABASE {CLOSED_TEMPLATE} ALLOW_CONNECTIONS false")
            elif open_:
                await _complete_one(session, name)


async def _complete_one(session: Session, database: str) -> None:
    async with session(TIMEOUT_S, options=_OPTIONS, database=database) as own:
        cursor = await own.execute(IS_THERE, [MARK])
        if await cursor.fetchone() == (True,):
            return
        async with own.transaction():
            for statement in STATEMENTS:
                await own.execute(statement.encode())
