"""A prepared PostgreSQL data directory: initdb once per version, then shared by every new cluster.

Each cluster gets an identity of its own on the way into its volume (see control_file.py): no second initdb.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import move_tree, replace_file
from aurora_ray.engine.image import tree_records
from aurora_ray.engine.postgres import functions
from aurora_ray.engine.postgres.configuration import PG_HBA
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, ClusterIdentity, identity_patches
from aurora_ray.engine.prepared import make_once, run_program
from aurora_ray.errors import UNDECODABLE, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall
    from aurora_ray.log.record import Record

FORMAT: Final = 3  # of the directory and of how it is made; a change makes new images
PAGE_BYTES: Final = 8192
SUPERUSER: Final = "postgres"
PREPARE_TIMEOUT_S: Final = 120.0
# A new timeline begins with a copy of a whole segment, which the first commit after a promotion waits for: a quarter of
# what PostgreSQL takes by itself. Another segment costs little here, as nobody waits for its file to be durable.
WAL_SEGMENT_MIB: Final = 4
TREE: Final = "tree"
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A data directory after initdb, shut down in order, with a single WAL segment. Never written again."""

    version: str
    tree: Path
    system_identifier: int
    nonce: bytes

    def new_cluster(self) -> Iterator[Record]:
        """See Image."""
        return self.records(ClusterIdentity.new(time.time()))

    def records(self, identity: ClusterIdentity, *, assign_extent: Callable[[], int] = lambda: 0) -> Iterator[Record]:
        """The records that make an empty volume the cluster `identity`; the control file comes last."""
        control = (self.tree / os.fsdecode(CONTROL_PATH)).read_bytes()
        heads = {}
        for segment in sorted((self.tree / "pg_wal").iterdir()):
            if segment.is_file():
                with segment.open("rb") as file:
                    heads[os.fsencode(segment.relative_to(self.tree))] = file.read(PAGE_BYTES)
        patches = identity_patches(control, self.nonce, heads, identity)
        return tree_records(
            self.tree, page_size=PAGE_BYTES, patches=patches, last=[CONTROL_PATH], assign_extent=assign_extent
        )


def prepare_image(
    install: EngineInstall, account: EngineAccount, cache_dir: Path, *, timeout_s: float = PREPARE_TIMEOUT_S
) -> PreparedImage:
    """The image of `install`'s version in `cache_dir`, made if it is not there (half a second). Blocks: use a thread.

    Raises what make_once raises, and EngineError if initdb fails.
    """
    target = cache_dir / f"{install.kind}-{install.version}-{FORMAT}"
    make_once(target, account, lambda: _build(install, account, target, timeout_s), timeout_s)
    return _load(target)


def _build(install: EngineInstall, account: EngineAccount, target: Path, timeout_s: float) -> None:
    building = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp-", dir=target.parent))
    try:
        account.own(building, 0o700)  # the account makes the tree in it
        tree = building / TREE
        runner = _Runner(install, account, tree, timeout_s)
        runner.initdb()
        (tree / "pg_hba.conf").write_text(PG_HBA)
        runner.add_functions()
        (tree / functions.NOTE).write_text(functions.NOTED)
        runner.run("pg_resetwal", "-f", "-D", str(tree))  # one new, nearly empty WAL segment instead of initdb's
        _remove_volatile(tree)
        facts = runner.control_data()
        if facts["Database cluster state"] != "shut down" or facts["Data page checksum version"] != "1":
            raise EngineError(f"initdb left an unexpected data directory: {facts['Database cluster state']}")
        manifest = {
            "format": FORMAT,
            "version": install.version,
            "system_identifier": int(facts["Database system identifier"]),
            "nonce": facts["Mock authentication nonce"],
        }
        replace_file(building / MANIFEST, json.dumps(manifest, indent=2) + "\n", mode=0o644)
        if account.switch:
            os.chown(
                building, os.geteuid(), os.getegid()
            )  # done: engines must not reach what other clusters start from
        move_tree(building, target)  # synced: later, nobody looks whether the pages in it are whole
    finally:
        shutil.rmtree(building, ignore_errors=True)


class _Runner:
    """Runs the installation's programs as the account."""

    def __init__(self, install: EngineInstall, account: EngineAccount, tree: Path, timeout_s: float) -> None:
        self._install, self._account, self._tree, self._timeout_s = install, account, tree, timeout_s

    def run(self, program: str, *arguments: str, given: str | None = None) -> str:
        """See run_program."""
        command = [str(self._install.bin_dir / program), *arguments]
        return run_program(self._account, command, given=given, timeout_s=self._timeout_s)

    def initdb(self) -> None:
        """A data directory whose order of strings depends as little as possible on the machine's C library.

        A volume is opened on many machines over its life. From 17 on PostgreSQL brings C.UTF-8 itself; before, libc's
        C.UTF-8 compares bytes just as well, and where a machine has none there is C.
        """
        common = ["-D", str(self._tree), "-U", SUPERUSER, "-E", "UTF8", "-A", "trust", "--data-checksums"]
        common += ["--no-instructions", f"--wal-segsize={WAL_SEGMENT_MIB}"]
        if self._install.major >= 17:
            locales = [["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]]
        else:
            locales = [["--locale=C.UTF-8"], ["--locale=C"]]
        for attempt, locale in enumerate(locales, 1):
            try:
                self.run("initdb", *common, *locale)
            except EngineError as error:
                if "invalid locale" not in str(error) or attempt == len(locales):
                    raise
            else:
                return

    def add_functions(self) -> None:
        """Into every database that there is; those made later are copies of one of these."""
        statements = "".join(f"{statement}\n" for statement in functions.STATEMENTS)
        for database in ("template1", "template0", "postgres"):
            options = ("--single", "-c", "exit_on_error=on", "-D", str(self._tree))
            self.run("postgres", *options, database, given=statements)

    def control_data(self) -> dict[str, str]:
        """What pg_controldata prints, by label."""
        pairs = (line.partition(":") for line in self.run("pg_controldata", "-D", str(self._tree)).splitlines())
        return {label: value.strip() for label, _, value in pairs}


def _remove_volatile(tree: Path) -> None:
    """Takes out what a server would make anew: caches, statistics, lock files."""
    for pattern in ("**/pg_internal.init*", "pg_stat_tmp/*", "postmaster.*", "**/pgsql_tmp*"):
        for path in tree.glob(pattern):
            path.unlink()


def _load(target: Path) -> PreparedImage:
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        return PreparedImage(
            manifest["version"], target / TREE, manifest["system_identifier"], bytes.fromhex(manifest["nonce"])
        )
    except (OSError, *UNDECODABLE) as error:
        raise EngineError(f"the prepared image in {target} is damaged, remove that directory: {error}") from error
