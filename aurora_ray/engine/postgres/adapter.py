"""PostgreSQL as the rest of the project knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.engine.postgres import credentials, install
from aurora_ray.engine.postgres.catalogue import check_changes
from aurora_ray.engine.postgres.client import CANCEL_CODE, REFUSAL, PostgresClient
from aurora_ray.engine.postgres.control_file import CONTROL_PATH
from aurora_ray.engine.postgres.image import PAGE_BYTES, SUPERUSER, prepare_image
from aurora_ray.engine.postgres.repair import Repair
from aurora_ray.engine.postgres.server import PostgresEngine, forget_run
from aurora_ray.engine.postgres.sessions import count_busy, count_sessions, count_slots
from aurora_ray.engine.postgres.settings import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import Adapter, Client, Engine, EngineInstall, Image
    from aurora_ray.engine.sizes import InstanceSize

FORWARDS_FROM: Final = 18  # major version


class PostgresAdapter:
    """See Adapter."""

    name = install.KIND
    page_bytes = PAGE_BYTES
    superuser = SUPERUSER
    # Small files that every start reads: better fetched together than one miss at a time.
    eager: tuple[str, ...] = (
        "global/*",
        "*.conf",
        "PG_VERSION",
        "base/*/PG_VERSION",
        "base/*/pg_filenode.map",
        "pg_xact/*",
        "pg_multixact/*/*",
    )
    # The catalogs that initdb made, of all databases but the templates (1 and 4): the first session reads dozens of
    # their pages one after the other. What users create has numbers of five digits.
    soon: tuple[str, ...] = ("base/5/????", "base/?????*/????")
    programs: tuple[str, ...] = ("postgres",)
    last_file = CONTROL_PATH
    version_file = b"PG_VERSION"
    repairs: tuple[str, ...] = tuple(Repair)
    read_only_parameters: Mapping[str, str] = {"default_transaction_read_only": "on"}
    client: Client = PostgresClient()
    cancel_code = CANCEL_CODE
    refusal = REFUSAL
    keeps_address = False  # clients' sockets come with their addresses
    has_readers = True
    goes_on_in_place = True
    passfile_suffix = ".pgpass"

    def find(self, version: str | None, bin_dir: Path | None) -> EngineInstall:
        """See Adapter."""
        return install.find_install(version, bin_dir)

    def stage(self, found: EngineInstall, account: EngineAccount, engines_dir: Path) -> EngineInstall:
        """See Adapter."""
        return install.stage(found, account, engines_dir)

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
        return PostgresEngine(
            found, account, run_dir, host=host, port=port, size=size, parameters=parameters, name=name
        )

    def forwards(self, version: str) -> bool:
        """See Adapter: from 18 on a login leaves behind what the writer can be shown instead of a password."""
        return int(version.partition(".")[0] or 0) >= FORWARDS_FROM

    def check_parameters(self, found: EngineInstall, changes: Mapping[str, str | None]) -> dict[str, str]:
        """See Adapter."""
        return check_changes(found, changes)

    def canonical(self, name: str) -> str:
        """See Adapter."""
        return next(iter(canonical({name: ""})))

    def ensure_passfile(self, path: Path) -> str:
        """See Adapter."""
        return credentials.ensure_passfile(path, SUPERUSER)

    def write_passfile(self, path: Path, password: str) -> None:
        """See Adapter."""
        credentials.write_passfile(path, SUPERUSER, password)

    def sessions(self, pid: int, below: Sequence[int]) -> int:  # noqa: ARG002
        """See Adapter."""
        return count_sessions(below)

    def busy_sessions(self, pid: int, below: Sequence[int]) -> int:  # noqa: ARG002
        """See Adapter."""
        return count_busy(below)

    def slots(self, data_dir: Path) -> int:
        """See Adapter."""
        return count_slots(data_dir)

    def forget_run(self, run_dir: Path) -> None:
        """See Adapter."""
        forget_run(run_dir)


ADAPTER: Final[Adapter] = PostgresAdapter()
