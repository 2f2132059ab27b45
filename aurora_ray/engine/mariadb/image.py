"""A prepared MariaDB data directory: made once per version, then shared by every new cluster.

Each cluster gets an identity of its own on the way into its volume, the server's number (`server_id`), which tells it
apart where binary logs meet. Two small files of ours lie beside the server's: it knows only directories.

    aurora.series      the versions that open this directory, as "10.11"
    aurora.server-id   ten digits
    aurora.started     a start was noted (server.py)
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import move_tree
from aurora_ray.engine.image import Patch, tree_records
from aurora_ray.engine.mariadb import accounts
from aurora_ray.engine.mariadb.install import INSTALL_DB, SERVER, basedir, program
from aurora_ray.engine.mariadb.settings import LOG_FILE_BYTES, PAGE_BYTES
from aurora_ray.engine.prepared import make_once, run_program
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall
    from aurora_ray.log.record import Record

FORMAT: Final = 1  # of the directory and of how it is made; a change makes new images
SERIES_FILE: Final = b"aurora.series"
SERVER_ID_FILE: Final = b"aurora.server-id"
PREPARE_TIMEOUT_S: Final = 120.0
TREE: Final = "tree"
_DIGITS: Final = 10
_LEFT_OUT: Final = ("ib_buffer_pool", "ibtmp1", "*.pid", "*.err")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A data directory that was shut down in order. Never written again."""

    tree: Path

    def new_cluster(self) -> Iterator[Record]:
        """See Image."""
        number = secrets.randbelow(2**32 - 1) + 1
        patch = Patch(SERVER_ID_FILE, 0, str(number).zfill(_DIGITS).encode())
        return tree_records(self.tree, page_size=PAGE_BYTES, patches=[patch], last=[SERIES_FILE])


def prepare_image(
    install: EngineInstall, account: EngineAccount, cache_dir: Path, *, timeout_s: float = PREPARE_TIMEOUT_S
) -> PreparedImage:
    """The image of `install`'s version in `cache_dir`, made if it is not there (some seconds). Blocks: use a thread.

    Raises what make_once raises, and EngineError if the installation's programs fail.
    """
    target = cache_dir / f"{install.kind}-{install.version}-{FORMAT}"
    make_once(target, account, lambda: _build(install, account, target, timeout_s), timeout_s)
    if not (target / TREE / os.fsdecode(SERIES_FILE)).is_file():
        raise EngineError(f"the prepared image in {target} is damaged, remove that directory")
    return PreparedImage(target / TREE)


def _build(install: EngineInstall, account: EngineAccount, target: Path, timeout_s: float) -> None:
    building = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp-", dir=target.parent))
    beside = Path(tempfile.mkdtemp(prefix="aurora-ray-"))  # a socket's name must be short
    try:
        account.own(building, 0o700)  # the account makes the tree in it
        account.own(beside, 0o700)
        tree = building / TREE
        common = [*_common(install, tree), f"--tmpdir={beside}"]
        script = str(program(install, INSTALL_DB))
        options = ["--skip-test-db", "--skip-name-resolve", "--force", "--auth-root-authentication-method=normal"]
        run_program(account, [script, "--no-defaults", *options, *common], timeout_s=timeout_s)
        run_statements(install, account, common, beside, accounts.at_first(), timeout_s=timeout_s)
        for pattern in _LEFT_OUT:
            for path in tree.glob(pattern):
                path.unlink()
        _dig_holes(tree / "ib_logfile0")
        (tree / os.fsdecode(SERVER_ID_FILE)).write_text("0" * _DIGITS + "\n")
        (tree / os.fsdecode(SERIES_FILE)).write_text(install.series + "\n")
        if account.switch:
            # Done: engines must not reach what other clusters start from.
            os.chown(building, os.geteuid(), os.getegid())
        move_tree(building, target)  # synced: later, nobody looks whether the pages in it are whole
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(beside, ignore_errors=True)


def _dig_holes(path: Path) -> None:
    """Gives back the room of the pages of a file that are zeros: InnoDB writes its log full when it makes it."""
    zeros = bytes(PAGE_BYTES)
    sparse = path.with_name(f"{path.name}.new")
    with path.open("rb") as source, sparse.open("wb") as target:
        while page := source.read(PAGE_BYTES):
            if page == zeros[: len(page)]:
                target.seek(len(page), os.SEEK_CUR)
            else:
                target.write(page)
        target.truncate()
    facts = path.stat()
    sparse.chmod(facts.st_mode & 0o777)
    os.chown(sparse, facts.st_uid, facts.st_gid)
    sparse.rename(path)


def run_statements(
    install: EngineInstall,
    account: EngineAccount,
    options: list[str],
    beside: Path,
    statements: tuple[str, ...],
    *,
    timeout_s: float,
) -> None:
    """Has a server that nobody can reach run these at its start, and end. `beside` is the account's. Raises
    EngineError."""
    script = beside / "init.sql"
    script.write_text("".join(f"{statement};\n" for statement in (*statements, "SHUTDOWN")))
    account.own(script, 0o600)
    places = [f"--socket={beside / 's'}", f"--pid-file={beside / 'pid'}", f"--init-file={script}", "--skip-networking"]
    server = str(install.bin_dir / SERVER)
    run_program(account, [server, "--no-defaults", *options, *places], timeout_s=timeout_s)


def _common(install: EngineInstall, tree: Path) -> list[str]:
    return [
        f"--basedir={basedir(install)}",
        f"--datadir={tree}",
        f"--innodb-page-size={PAGE_BYTES}",
        f"--innodb-log-file-size={LOG_FILE_BYTES}",
        "--innodb-use-native-aio=OFF",
        "--innodb-doublewrite=OFF",
        "--innodb-buffer-pool-dump-at-shutdown=OFF",
    ]
