import os
import shutil
import subprocess
from pathlib import Path

import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.postgres.install import discover, find_install, install_at, stage
from aurora_ray.errors import ConfigurationError

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


def test_the_wheels_bring_two_versions() -> None:
    assert [install.major for install in discover()][:3] == [18, 18, 16]
    assert find_install().major == 18
    assert find_install("16").version.startswith("16.")
    assert find_install(find_install("16").version).major == 16


def test_a_version_that_is_not_there_says_which_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no PostgreSQL 99 .*found: 18\..*16\."):
        find_install("99")
    with pytest.raises(ConfigurationError, match="no PostgreSQL 1 "):
        find_install("1")


@pytest.mark.skipif(not DEBIAN_15.is_dir(), reason="Debian's PostgreSQL 15 is not installed")
def test_any_other_installation_works_by_its_bin_directory(account: EngineAccount, data_dir: Path) -> None:
    install = find_install(bin_dir=DEBIAN_15)
    assert (install.major, install.parts) == (15, ())
    assert find_install("15") == install
    assert stage(install, account, data_dir) is install
    with pytest.raises(ConfigurationError, match="not 18"):
        find_install("18", DEBIAN_15)


def test_what_is_no_installation_is_refused(data_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no postgres"):
        install_at(data_dir)
    for program in ("postgres", "initdb", "pg_resetwal", "pg_controldata"):
        (data_dir / program).write_text("#!/bin/sh\necho nothing useful\n")
    with pytest.raises(ConfigurationError, match="does not run"):
        install_at(data_dir)
    (data_dir / "postgres").chmod(0o755)
    with pytest.raises(ConfigurationError, match="names no version"):
        install_at(data_dir)
    (data_dir / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 12.3'\n")
    with pytest.raises(ConfigurationError, match="too old"):
        install_at(data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs engines as someone else")
def test_a_tree_out_of_reach_is_copied_once(account: EngineAccount, data_dir: Path) -> None:
    private = data_dir / "private"
    for part in find_install("18").parts:
        ignore = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(part.source, private / part.relative, symlinks=True, ignore=ignore)
    private.chmod(0o700)
    hidden = install_at(private / find_install("18").parts[0].relative / "bin")
    staged = stage(hidden, account, data_dir / "engines")
    assert staged.bin_dir.is_relative_to(data_dir / "engines")
    assert staged.version == hidden.version
    before = staged.bin_dir.stat().st_ino
    assert stage(hidden, account, data_dir / "engines").bin_dir.stat().st_ino == before
    assert [path.name for path in (data_dir / "engines").iterdir()] == [staged.bin_dir.parents[2].name]
    command = account.command([str(staged.bin_dir / "psql"), "--version"])  # psql needs libpq, from the other part
    assert b"18." in subprocess.run(command, capture_output=True, check=True, timeout=30).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs engines as someone else")
def test_a_tree_that_works_only_in_its_place_is_not_copied(account: EngineAccount, data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    install = EngineInstall("postgres", "18.4", closed / "bin")
    with pytest.raises(ConfigurationError, match="only works where it is"):
        stage(install, account, data_dir / "engines")


def test_the_default_brings_the_extensions_that_people_expect() -> None:
    share = find_install().bin_dir.parent / "share"
    there = {path.stem for path in share.glob("**/extension/*.control")}
    assert there >= {"pg_stat_statements", "pg_trgm", "hstore", "postgres_fdw", "amcheck", "vector"}
