"""Under sanitizers: processes and threads that change a mount in all ways at once, and a real PostgreSQL."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from tests.engine.conftest import account, install
from tests.interposer.recorder import Recorder
from tests.interposer.sanitized import Sanitized

__all__ = ["account", "install"]

PROGRAM = "tests.interposer.any_lsn_together"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    return Sanitized.build(tmp_path_factory.mktemp("sanitized"))


def run(sanitized: Sanitized, directory: Path, seed: int, count: int, *more: str) -> str:
    words = ["-m", PROGRAM, str(directory), str(seed), str(count), *more]
    done = sanitized.python(*words, "--library", str(sanitized.library), "--preload", sanitized.preload)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("seed", "more"), [(1, ()), (2, ()), (3, ("--kill-after", "900"))])
def test_each_workers_directory_at_any_lsn(
    sanitized: Sanitized, tmp_path: Path, seed: int, more: tuple[str, ...]
) -> None:
    assert " 0 pages evicted" not in run(sanitized, tmp_path, seed, 120, *more)


@pytest.mark.chaos
@pytest.mark.timeout(600)  # 20 s, and minutes beside fleets: the sanitizers make the memory slow
@pytest.mark.parametrize("seed", range(100, 104))
def test_each_workers_directory_at_any_lsn_for_long(sanitized: Sanitized, tmp_path: Path, seed: int) -> None:
    run(sanitized, tmp_path, seed, 500, *(("--kill-after", str(seed * 20)) if seed % 3 == 0 else ()))


def test_the_sanitizers_see_what_the_library_does(sanitized: Sanitized) -> None:
    """A buffer of 10 bytes, of which the library is told that it has 11."""
    call = "import ctypes\nc = ctypes.CDLL({!r})\nm = ctypes.CDLL(None).malloc\nm.restype = ctypes.c_void_p\n"
    done = sanitized.python("-c", call.format(str(sanitized.library)) + "c.ar_crc32c(0, ctypes.c_void_p(m(10)), 11)")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "ar_crc32c" in done.stderr


def test_a_wrong_model_is_seen(tmp_path: Path) -> None:
    """Judged by another seed's models, the same log is wrong."""
    code = f"import {PROGRAM} as p\nof = p.operations_of\np.operations_of = lambda seed, worker: of(seed + 1, worker)\n"
    more = f"import pathlib\np.run(pathlib.Path({str(tmp_path)!r}), 1, 10, None, None)"
    done = subprocess.run([sys.executable, "-c", code + more], capture_output=True, text=True, check=False)
    assert "AssertionError" in done.stderr
    assert "at LSN" in done.stderr


STATEMENTS = """create table t as select g, md5(g::text) from generate_series(1, 20000) g;

create index on t (md5);

update t set g = -g where g % 3 = 0;

vacuum full t;

select (select sum(hashtext(md5)) from t) = (select sum(hashtext(md5(g::text))) from generate_series(1, 20000) g);

"""


@pytest.mark.postgres
def test_postgres_makes_a_cluster_and_works_on_it(
    sanitized: Sanitized,
    data_dir: Path,
    account: EngineAccount,
    install: EngineInstall,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Path(shutil.copy(sanitized.library, data_dir))  # where the account can read it
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    recorder = Recorder(
        data_dir, evict=True, ring_bytes=16 << 20, preload=Sanitized(library, sanitized.runtime).preload
    )
    recorder.region.add_group(0, 100_000)
    account.own(recorder.mount, 0o700)
    data, output = recorder.mount / "data", data_dir / "output"
    for words in (
        ["initdb", "-U", "postgres", "--no-locale", "-E", "UTF8", "-D", str(data)],
        ["postgres", "--single", "-j", "-D", str(data), "postgres"],
    ):
        command = account.command([str(install.bin_dir / words[0]), *words[1:]])
        with output.open("wb") as out:
            child = recorder.spawn(command, stdin=subprocess.PIPE, stdout=out)
        child.stdin.write(STATEMENTS.encode() if "--single" in words else b"")
        child.stdin.close()
        child.stdin = None
        recorder.serve(child)
    assert '= "t"' in output.read_text()
    assert recorder.evicted_pages > 1000
    recorder.close()
