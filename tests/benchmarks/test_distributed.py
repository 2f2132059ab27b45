"""Load generators side by side: how work is shared out, what the kernel counts, and what happens when one fails."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

import benchmarks
from benchmarks import generator, machine
from benchmarks.distributed import jobs_for, run_here, together
from benchmarks.generator import Generated, Target
from benchmarks.loads import Load, LoadResult
from benchmarks.procfs import socket_inodes
from benchmarks.programs import LoadError
from benchmarks.segments import connections

LOAD = Load(scripts=("select-only",), clients=2, seconds=1, scale=1, seed=5, rate_tps=90)


def _target(tmp_path: Path, host: str) -> Target:
    passfile = tmp_path / "passfile"
    passfile.write_text("*:*:*:me:a\\:b\\\\c\n")
    return Target.parse(f"postgresql://me@{host}:5432/d?passfile={passfile}&connect_timeout=5")


def test_a_target_travels_with_its_password_and_without_the_file(tmp_path: Path) -> None:
    target = _target(tmp_path, "db.example")
    assert target.password == "a:b\\c"  # noqa: S105
    assert "passfile" not in target.conninfo
    assert "a:b" not in target.conninfo
    assert target.place == "db.example:5432"
    inline = Target.parse("postgresql://me:geheim@h/d")
    assert (inline.conninfo, inline.password) == ("user=me dbname=d host=h", "geheim")


def test_a_rate_is_shared_and_seeds_differ(tmp_path: Path) -> None:
    jobs = jobs_for([_target(tmp_path, "one"), _target(tmp_path, "two")], LOAD, 3)
    assert [job.load.rate_tps for job in jobs] == [30, 30, 30]
    assert [job.load.seed for job in jobs] == [5, 6, 7]
    assert [job.target.place for job in jobs] == ["one:5432", "two:5432", "one:5432"]


def test_generators_begin_together_and_find_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run_load(dsn: str, load: Load, bin_dir: str) -> LoadResult:
        path = Path(dict(word.split("=", 1) for word in dsn.split())["passfile"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        seen.append(path.read_text())
        return LoadResult(10 * load.seed, 0, 1.0, 10.0, 0.1, {1000: 10 * load.seed})

    monkeypatch.setattr(generator, "run_load", run_load)
    found = run_here(jobs_for([_target(tmp_path, "one"), _target(tmp_path, "two")], LOAD, 2))
    assert seen == ["*:*:*:*:a\\:b\\\\c\n"] * 2, "libpq wants colons and backslashes escaped"
    results = together(found)
    assert list(results) == ["one:5432", "two:5432", "all"]
    assert (results["one:5432"].transactions, results["all"].transactions) == (50, 110)
    assert results["all"].counts == {1000: 110}


def test_one_that_fails_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(number: int, *_: object) -> Generated:
        raise LoadError(f"generator {number} broke")

    monkeypatch.setattr("benchmarks.distributed.generate", generate)
    with pytest.raises(LoadError, match="broke"):
        run_here(jobs_for([_target(tmp_path, "one")], LOAD, 3))


def test_a_generator_runs_where_the_benchmarks_are_not(tmp_path: Path) -> None:
    """As a Ray worker on another machine: what it gets by value must be all that it needs besides aurora-ray."""
    (job,) = jobs_for([Target.parse("postgresql://me:geheim@127.0.0.1:1/d?connect_timeout=5")], LOAD, 1)
    cloudpickle.register_pickle_by_value(benchmarks)
    try:
        (tmp_path / "job").write_bytes(cloudpickle.dumps((generator.generate, job)))
    finally:
        cloudpickle.unregister_pickle_by_value(benchmarks)
    code = (
        "import importlib.util, pickle, sys\n"
        "assert importlib.util.find_spec('benchmarks') is None\n"
        "generate, job = pickle.load(open('job', 'rb'))\n"
        "try:\n"
        "    generate(job.number, job.target, job.load, lambda: None)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(_package_without_benchmarks(tmp_path))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("LoadError "), done.stdout
    assert "pgbench" in done.stdout
    assert "geheim" not in done.stdout


def _package_without_benchmarks(tmp_path: Path) -> Path:
    path = tmp_path / "packages"
    path.mkdir()
    (path / "aurora_ray").symlink_to(machine.ROOT / "aurora_ray")
    return path


def test_the_kernel_counts_segments_of_our_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            with accepted:
                for _ in range(5):
                    client.sendall(b"x")
                    assert accepted.recv(1) == b"x"
                found = {each.remote == port: each for each in connections() if port in (each.local, each.remote)}
    assert (found[True].data_segments_out, found[False].data_segments_out) == (5, 0)


def test_sockets_of_a_process_are_known_by_inode() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert os.fstat(server.fileno()).st_ino in socket_inodes(os.getpid())
