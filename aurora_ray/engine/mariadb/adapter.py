"""MariaDB as the rest of the project knows it: the engine that MySQL's clients speak to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.engine.mariadb import accounts, credentials, install
from aurora_ray.engine.mariadb.catalogue import check_changes
from aurora_ray.engine.mariadb.client import REFUSAL, MariadbClient
from aurora_ray.engine.mariadb.image import SERIES_FILE, prepare_image
from aurora_ray.engine.mariadb.repair import Repair
from aurora_ray.engine.mariadb.server import MariadbEngine
from aurora_ray.engine.mariadb.sessions import count_sessions
from aurora_ray.engine.mariadb.settings import PAGE_BYTES, canonical

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import Adapter, Client, Engine, EngineInstall, Image
    from aurora_ray.engine.sizes import InstanceSize


class MariadbAdapter:
    """See Adapter."""

    name = install.KIND
    page_bytes = PAGE_BYTES
    superuser = accounts.OWNER
    # Small files that every start reads from end to end, ours among them.
    eager: tuple[str, ...] = (
        "aurora.*",
        "aria_log_control",
        "ddl_recovery*.log",
        "multi-master.info",
        "*.index",
        "*.state",
    )
    # The system's tables, of which each start opens some dozens.
    soon: tuple[str, ...] = ("mysql/*",)
    programs: tuple[str, ...] = (install.SERVER,)
    last_file = SERIES_FILE
    version_file = SERIES_FILE
    repairs: tuple[str, ...] = tuple(Repair)
    read_only_parameters: Mapping[str, str] = {"read_only": "ON"}
    client: Client = MariadbClient()
    cancel_code = 0  # a statement is cancelled by another one (KILL QUERY), in a session of its own
    refusal = REFUSAL
    keeps_address = True  # so a session that came by an address of the cluster's own is known (told.py)
    has_readers = True
    goes_on_in_place = False
    passfile_suffix = ".cnf"

    def find(self, version: str | None, bin_dir: Path | None) -> EngineInstall:
        """See Adapter."""
        return install.find_install(version, bin_dir)

    def stage(self, found: EngineInstall, account: EngineAccount, engines_dir: Path) -> EngineInstall:  # noqa: ARG002
        """See Adapter."""
        return install.stage(found, account)

    def prepare(self, found: EngineInstall, account: EngineAccount, images_dir: Path) -> Image:
        """See Adapter."""
        return prepare_image(found, account, images_dir)

    def make(
        self,
        found: EngineInstall,
        account: EngineAccount,
        run_dir: Path,
        *,
        host: str,
        port: int,
        size: InstanceSize,
        parameters: Mapping[str, str],
        name: str = "",
    ) -> Engine:
        """See Adapter."""
        return MariadbEngine(found, account, run_dir, host=host, port=port, size=size, parameters=parameters, name=name)

    def forwards(self, version: str) -> bool:  # noqa: ARG002
        """See Adapter."""
        return False

    def check_parameters(self, found: EngineInstall, changes: Mapping[str, str | None]) -> dict[str, str]:
        """See Adapter."""
        return check_changes(found, changes)

    def canonical(self, name: str) -> str:
        """See Adapter."""
        return canonical(name)

    def ensure_passfile(self, path: Path) -> str:
        """See Adapter."""
        return credentials.ensure_passfile(path, accounts.OWNER)

    def write_passfile(self, path: Path, password: str) -> None:
        """See Adapter."""
        credentials.write_passfile(path, accounts.OWNER, password)

    def sessions(self, pid: int, below: Sequence[int]) -> int:  # noqa: ARG002
        """See Adapter."""
        return count_sessions(pid)

    def busy_sessions(self, pid: int, below: Sequence[int]) -> int:
        """See Adapter. What a thread does is not seen from outside."""
        return self.sessions(pid, below)

    def slots(self, data_dir: Path) -> int:  # noqa: ARG002
        """See Adapter. There is no such thing."""
        return 0

    def forget_run(self, run_dir: Path) -> None:
        """See Adapter. The kernel keeps nothing of a server that is gone."""


ADAPTER: Final[Adapter] = MariadbAdapter()
