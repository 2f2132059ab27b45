"""What a run will do, before it does it: options, what an interrupted run still lacks, how long it should take."""

from pathlib import Path

import pytest

from aurora_ray.errors import ConfigurationError, UsageError
from benchmarks import machine, runner
from benchmarks.data import DataSpec
from benchmarks.results import Figure, Result, Sample
from benchmarks.runner import Request, tailored
from benchmarks.schedule import COPY, Run
from benchmarks.site import require_room
from benchmarks.suites import SUITES
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import CATALOGUE, Checkpoint


def _sample(workload: str, clients: int, system: str, number: int) -> Sample:
    return Sample(
        workload=workload,
        clients=clients,
        system=system,
        round=number,
        seconds=1.0,
        transactions=1,
        failed=0,
        tps=1.0,
        latency_us={},
        histogram="",
        client_cpu_s=0.0,
        cpu_s={},
        dirtied_bytes={},
        memory_bytes={},
        counters={},
        machine_cpu_s=0.0,
        deferred_cpu_s=0.0,
        device_bytes=0,
        device_bytes_settled=0,
        loopback_packets=0,
        loopback_bytes=0,
    )


def _result(suite: str, **options: object) -> Result:
    return Result(
        suite=suite,
        started="2026-01-01T00:00:00+00:00",
        seed=1,
        commit=machine.commit(),
        machine={},
        versions={},
        options=dict(options),
        finished=False,
    )


@pytest.mark.parametrize("name", SUITES)
def test_page_images_are_paid_before_the_first_checkpoint_undoes_it(name: str) -> None:
    """Each change of the kind of checkpoint costs minutes on a large database: there is one in a suite."""
    kinds = [each.workload.checkpoint for each in SUITES[name].turns]
    assert kinds == sorted(kinds, key=list(Checkpoint).index)


def test_writes_have_so_many_branches_that_locks_do_not_decide() -> None:
    assert all(SUITES[name].data.scale >= 150 for name in ("standard", "full"))
    assert all(
        max(each.clients) <= suite.data.scale
        for suite in SUITES.values()
        for each in suite.turns
        if suite.name != "quick"
    )


def test_the_standard_suite_has_every_workload_and_takes_less_than_half_an_hour() -> None:
    assert SUITES["standard"].estimate_s(tuple(SYSTEMS)) < 1300
    assert {each.workload.name for each in SUITES["standard"].turns} == set(CATALOGUE)
    assert SUITES["quick"].estimate_s(SUITES["quick"].systems) < 240


def test_what_an_interrupted_run_has_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tailored(Request(suite="quick", workloads="tpcb,select", rounds=2))
    names = ["aurora", "stock"]
    whole = Run(suite, names, 1, lambda _: None).steps
    earlier = _result("quick")
    earlier.samples = [_sample("select", 32, "aurora", 0), _sample("select", 32, "stock", 0)]
    assert Run(suite, names, 1, lambda _: None, earlier=earlier).steps == whole - 2
    earlier.samples += [_sample("select", 32, "aurora", 1), _sample("select", 32, "stock", 1)]
    assert Run(suite, names, 1, lambda _: None, earlier=earlier).steps == whole - 4 - 1  # one preparation less
    earlier.figures.append(Figure(name=COPY, system="stock", round=0, value=1.0, unit="MB/s"))
    assert Run(suite, names, 1, lambda _: None, earlier=earlier).steps == whole - 5, "quick copies nothing"


def test_only_the_same_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "OUT", tmp_path)
    request = Request(suite="quick", resume=True, systems="stock")
    suite = tailored(request)
    assert runner.earlier_result(request, suite, ["stock"]) == (None, None)
    path = tmp_path / "quick-20260101T000000.json"
    result = _result("quick", **runner.options_of(suite, ["stock"]))
    result.save(path)
    assert runner.earlier_result(request, suite, ["stock"]) == (result, path)
    with pytest.raises(UsageError, match="other options"):
        runner.earlier_result(request, suite, ["aurora"])
    result.commit = {"id": "0" * 40, "modified": False}
    result.save(path)
    with pytest.raises(UsageError, match="is of commit 0000"):
        runner.earlier_result(request, suite, ["stock"])
    result.finished = True
    result.save(path)
    assert runner.earlier_result(request, suite, ["stock"]) == (None, None)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(suite="fast"), "there is no suite fast"),
        (Request(suite="quick", workloads="tpcb,nothing"), "there is no workload nothing in quick"),
        (Request(suite="quick", clients="0"), "not a list of numbers"),
        (Request(suite="quick", clients="many"), "not a list of numbers"),
    ],
)
def test_what_does_not_exist_is_named(request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tailored(request_)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "no result"),
        ('{"samples": [], "format": 0}', "another version"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            Result.load(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Result.load(tmp_path / "none.json")


def test_settings_are_for_systems() -> None:
    assert runner.parameters_of(["stock:a=1", "stock:b=x=y"]) == {"stock": {"a": "1", "b": "x=y"}}
    for wrong in ("a=1", "mysql:a=1", "stock:a"):
        with pytest.raises(UsageError, match="not of the form"):
            runner.parameters_of([wrong])


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    require_room(tmp_path / "new", DataSpec(scale=0), ["stock"])
    with pytest.raises(ConfigurationError, match="GiB free"):
        require_room(tmp_path / "new", DataSpec(scale=10**7), ["stock"])
    assert list(tmp_path.iterdir()) == []


def test_workloads_name_scripts_that_exist() -> None:
    files = [Path(script.partition("@")[0]) for script in CATALOGUE["tpcc"].scripts]
    assert len(files) == 5
    assert all(file.is_file() for file in files)
