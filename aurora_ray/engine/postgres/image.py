"""A prepared PostgreSQL data directory: initdb once per version, then shared by every new cluster.

Each cluster gets an identity of its own on the way into its volume (see control_file.py): no second initdb.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import move_tree, replace_file
from aurora_ray.engine.account import BASE_ENVIRONMENT, EngineAccount
from aurora_ray.engine.image import tree_records
from aurora_ray.engine.postgres.configuration import PG_HBA
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, ClusterIdentity, identity_patches
from aurora_ray.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aurora_ray.engine.base import EngineInstall
    from aurora_ray.log.record import Record

FORMAT: Final = 1  # of the directory and of how it is made; a change makes new images
PAGE_BYTES: Final = 8192
SUPERUSER: Final = "postgres"
PREPARE_TIMEOUT_S: Final = 120.0
LOCK_INTERVAL_S: Final = 0.02
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

    Any number of callers, in any number of processes, may ask at once: one makes it, the others wait. It is built
    beside its place and renamed into it, so it is whole or not there; what an interrupted caller left is removed.
    Raises ConfigurationError (the account cannot get at the directory) and EngineError (initdb fails, the lock takes
    too long).
    """
    target = cache_dir / f"{install.kind}-{install.version}-{FORMAT}"
    if target.is_dir():
        return _load(target)
    cache_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    account.require_reachable(cache_dir)
    with _locked(cache_dir / f".{target.name}.lock", timeout_s):
        for leftover in cache_dir.glob(f"{target.name}.tmp-*"):
            shutil.rmtree(leftover)
        if not target.is_dir():
            _build(install, account, target, timeout_s)
    return _load(target)


def _build(install: EngineInstall, account: EngineAccount, target: Path, timeout_s: float) -> None:
    building = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp-", dir=target.parent))
    try:
        account.own(building, 0o700)  # the account makes the tree in it
        tree = building / TREE
        runner = _Runner(install, account, tree, timeout_s)
        runner.initdb()
        (tree / "pg_hba.conf").write_text(PG_HBA)
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

    def run(self, program: str, *arguments: str) -> str:
        """Standard output. Raises EngineError with what the program said."""
        command = self._account.command([str(self._install.bin_dir / program), *arguments])
        environment = {**BASE_ENVIRONMENT, "LC_ALL": "C"}  # what we parse is in English
        try:
            done = subprocess.run(
                command, env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=self._timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{program} did not end within {self._timeout_s:g} s") from error
        except OSError as error:
            raise ConfigurationError(f"cannot start {program}: {error}") from error
        if done.returncode != 0:
            raise EngineError(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def initdb(self) -> None:
        """A data directory whose order of strings depends as little as possible on the machine's C library.

        A volume is opened on many machines over its life. From 17 on PostgreSQL brings C.UTF-8 itself; before, libc's
        C.UTF-8 compares bytes just as well, and where a machine has none there is C.
        """
        common = ["-D", str(self._tree), "-U", SUPERUSER, "-E", "UTF8", "-A", "trust", "--data-checksums"]
        common.append("--no-instructions")
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
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"the prepared image in {target} is damaged, remove that directory: {error}") from error


@contextmanager
def _locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Holds the lock file; the kernel lets go of it when a holder dies. Raises EngineError after the timeout."""
    deadline = time.monotonic() + timeout_s
    with path.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineError(f"another process has held {path} for {timeout_s:g} s: is it stuck?") from None
                time.sleep(LOCK_INTERVAL_S)
        yield
