"""What is asked of a replica's own server: to follow, and how far it is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.engine.mariadb.connection import sentence
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from aurora_ray.engine.mariadb.administration import Administration

BEGIN_TIMEOUT_S: Final = 30.0
WAIT_S: Final = 1  # one wait in the server; then the next
_ANSWER_S: Final = 30.0  # a server that is busy
_STATE: Final = ("Last_SQL_Error", "Last_IO_Error", "Slave_SQL_Running", "Slave_IO_Running")
_FOLLOW: Final = (
    # The log_bin that is recovered is the writer's, so this is how far the data is.
    "SET GLOBAL gtid_slave_pos = @@GLOBAL.gtid_binlog_pos",
    "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s, "
    "MASTER_LOG_FILE = %s, MASTER_LOG_POS = %s, MASTER_USE_GTID = no, MASTER_CONNECT_RETRY = 1, "
    "MASTER_HEARTBEAT_PERIOD = 0",
    "START SLAVE",
)


class Replica:
    """Sessions with one server. One call at a time."""

    def __init__(self, admin: Administration) -> None:
        self._admin = admin
        self._session: Any = None

    async def follow(self, port: int, user: str, password: str, file: str, position: int) -> None:
        """Begins to follow what listens on a port of loopback. Raises EngineError."""
        await self._in_thread(self._follow, (port, user, password, file, position))

    async def wait_replayed(self, file: str, position: int) -> None:
        """Returns when it shows all up to there, without a limit. Raises EngineError when it follows no further."""
        while not await self._in_thread(self._wait, (file, position)):
            pass

    def close(self) -> None:
        """Ends the session that waits."""
        if self._session is not None:
            self._session.close()

    async def _in_thread(self, work: Any, arguments: Any) -> Any:
        import pymysql

        try:
            return await asyncio.to_thread(work, arguments)
        except (pymysql.MySQLError, OSError) as error:
            raise EngineError(f"the server does not follow its writer: {sentence(error)}") from error

    def _follow(self, arguments: tuple[Any, ...]) -> None:
        with self._admin.session(BEGIN_TIMEOUT_S) as session, session.cursor() as cursor:
            for statement in _FOLLOW:
                cursor.execute(statement, arguments if "%s" in statement else ())

    def _wait(self, arguments: tuple[Any, ...]) -> bool:
        if self._session is None:
            self._session = self._admin.session(_ANSWER_S)
        with self._session.cursor() as cursor:
            cursor.execute("SELECT MASTER_POS_WAIT(%s, %s, %s)", (*arguments, WAIT_S))
            waited = cursor.fetchone()[0]
            if waited is not None and waited >= 0:
                return True
            cursor.execute("SHOW SLAVE STATUS")
            names = [column[0] for column in cursor.description]
            state = dict(zip(names, cursor.fetchone() or (), strict=False))
        complaint = next((state[name] for name in _STATE[:2] if state.get(name)), "")
        if complaint or any(state.get(name, "No") == "No" for name in _STATE[2:]):
            raise EngineError(f"the server does not follow its writer: {complaint or 'it has stopped'}")
        return False
