"""Where PostgreSQL is installed on this machine, in which versions, and copies of it where the account can reach them.

Some versions come complete in wheels (`wheels.py`); any other is used from its bin directory.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from aurora_ray.durable import move_tree
from aurora_ray.engine.account import BASE_ENVIRONMENT, EngineAccount
from aurora_ray.engine.base import EngineInstall, TreePart
from aurora_ray.engine.postgres.wheels import PACKAGES, WHEELS
from aurora_ray.engine.version import VERSION_TIMEOUT_S, is_of, version_of
from aurora_ray.errors import ConfigurationError

COPY_FORMAT: Final = "synced"  # copies by other names were not: a power cut may have emptied them
KIND: Final = "postgres"
MAJOR_MIN: Final = 15  # recovery_prefetch and the shared-memory statistics, which the settings rely on
SYSTEM_PATTERNS: Final = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")  # Debian's, PGDG's for RPM systems
_VERSION = re.compile(r"\(PostgreSQL\) (\d+(?:\.\d+)*)")


def discover() -> list[EngineInstall]:
    """Every usable installation: the wheels' first, in their order, then the system's, the newest first in each."""
    found = []
    for bin_dir in [*(root / "bin" for wheel in WHEELS for root in wheel.roots()), *_system_bin_dirs()]:
        try:
            found.append(install_at(bin_dir))
        except ConfigurationError:  # a half-removed package or one too old is none of our business here
            continue
    return found


def find_install(version: str | None = None, bin_dir: Path | None = None) -> EngineInstall:
    """The installation to use: the one in `bin_dir`, or the first one whose version is or begins with `version`.

    With neither, the first wheel's. Raises ConfigurationError if there is none, saying which there are.
    """
    if bin_dir is not None:
        install = install_at(bin_dir)
        if not is_of(install.version, version):
            raise ConfigurationError(f"{bin_dir} holds PostgreSQL {install.version}, not {version}")
        return install
    candidates = discover()
    for candidate in candidates:
        if is_of(candidate.version, version):
            return candidate
    have = ", ".join(candidate.version for candidate in candidates) or "none"
    raise ConfigurationError(
        f"no PostgreSQL {version or ''} on this machine (found: {have}): install it, or name its bin directory"
    )


def install_at(bin_dir: Path) -> EngineInstall:
    """The installation whose programs lie in `bin_dir`. Raises ConfigurationError if missing, broken or too old."""
    server = bin_dir / "postgres"
    for program in ("postgres", "initdb", "pg_resetwal", "pg_controldata"):
        if not (bin_dir / program).is_file():
            raise ConfigurationError(f"{bin_dir} is not PostgreSQL's bin directory: it has no {program}")
    install = EngineInstall(KIND, version_of("PostgreSQL", server, _VERSION), bin_dir, _parts(bin_dir))
    if install.major < MAJOR_MIN:
        raise ConfigurationError(f"PostgreSQL {install.version} in {bin_dir} is too old: {MAJOR_MIN} is the oldest")
    return install


def stage(install: EngineInstall, account: EngineAccount, engines_dir: Path) -> EngineInstall:
    """`install` itself if the account can run it, or a copy below `engines_dir`, made once.

    A wheel often lies below a home directory that only its owner may enter. The copy belongs to us, so that the account
    cannot change it. Raises ConfigurationError if a copy is needed but the installation does not work elsewhere.
    """
    if _runs(install, account):
        return install
    if not install.parts:
        raise ConfigurationError(
            f"the account {account.name} cannot run {install.bin_dir}/postgres, and that installation only works where "
            "it is: make it readable to others"
        )
    bin_dir = _copy(install, engines_dir)
    account.require_reachable(engines_dir)
    staged = install_at(bin_dir)
    if not _runs(staged, account):
        raise ConfigurationError(f"the account {account.name} cannot run the copy in {bin_dir}: is it mounted noexec?")
    return staged


def _copy(install: EngineInstall, engines_dir: Path) -> Path:
    """The bin directory of the copy; whole or not there, through a rename. Names tell the sources apart."""
    sources = (COPY_FORMAT, *(str(part.source) for part in install.parts))
    origin = hashlib.sha256("\0".join(sources).encode()).hexdigest()[:8]
    target = engines_dir / f"{install.kind}-{install.version}-{origin}"
    main = install.parts[0]
    bin_dir = target / main.relative / install.bin_dir.relative_to(main.source)
    if target.is_dir():
        return bin_dir
    engines_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp-", dir=engines_dir))
    try:
        temporary.chmod(0o755)
        for part in install.parts:
            ignore = shutil.ignore_patterns("include", "*.a", "__pycache__")
            shutil.copytree(part.source, temporary / part.relative, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        _open_to_all(temporary)
        try:
            move_tree(temporary, target)
        except OSError:  # someone else was faster; theirs is as good
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return bin_dir


def _open_to_all(root: Path) -> None:
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))


def _runs(install: EngineInstall, account: EngineAccount) -> bool:
    """Whether the account can start the server and read what it loads: asked by doing it."""
    command = account.command([str(install.bin_dir / "initdb"), "--version"])
    try:
        done = subprocess.run(
            command, env=dict(BASE_ENVIRONMENT), capture_output=True, check=False, timeout=VERSION_TIMEOUT_S
        )
    except OSError:
        return False
    share = _share(install.bin_dir)
    return done.returncode == 0 and (share is None or account.can("-r", share / "postgres.bki"))


def _share(bin_dir: Path) -> Path | None:
    """The directory of catalog templates if it lies beside the bin directory, as in a relocatable tree."""
    for name in ("share/postgresql", "share"):
        if (bin_dir.parent / name / "postgres.bki").is_file():
            return bin_dir.parent / name
    return None


def _parts(bin_dir: Path) -> tuple[TreePart, ...]:
    if _share(bin_dir) is None:
        return ()
    root = bin_dir.parent
    wheel = root.parent.name
    if wheel not in PACKAGES:
        return (TreePart(root, "."),)
    parts = [TreePart(root, f"{wheel}/{root.name}")]
    libraries = root.parent.parent / f"{wheel}.libs"  # a wheel's repaired libraries, found relative to the programs
    if libraries.is_dir():
        parts.append(TreePart(libraries, libraries.name))
    return tuple(parts)


def _system_bin_dirs() -> list[Path]:
    found = [path for pattern in SYSTEM_PATTERNS for path in Path("/").glob(pattern)]
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", str(path))], reverse=True)
