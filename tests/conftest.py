"""Fixtures for every test, and the rules that every test is held to: it ends in time, it logs nothing worrying that it
did not announce, and it leaves nothing behind.

The rules are checked by autouse fixtures. They are set up first and so torn down last, after the event loop and all
other fixtures of the test. What a test is allowed to leave or to log, it says by a marker (see pyproject.toml).
"""

import gc
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from aurora_ray.rpc.process import raise_descriptor_limit
from tests.support.engines import missing_engine
from tests.support.leaks import LeakDetector, remove_tree
from tests.support.logs import LogRecorder
from tests.support.order import File, guessed_s, packed, record, recorded_s
from tests.support.ports import PortAllocator
from tests.support.secret import hold_secret
from tests.support.timing import TEST_FACTOR, TIMEOUT_FACTOR

# The same examples each time, however long they take: new ones are for `make fuzz`.
settings.register_profile("aurora", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aurora")
_RUN_DIR = pytest.StashKey[Path]()
_TOOK_S: dict[str, float] = {}  # path of a file of tests -> seconds so far


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a temporary directory of its own, for this process and all that it starts.

    With workers (pytest-xdist) each has one; the process that only hands out files to them needs none.
    """
    if config.getoption("numprocesses", None):
        return
    raise_descriptor_limit()  # mounts and segments of a test live in this process
    # Short, as Unix sockets will lie in it; passable for others, as engines run under an account of their own.
    run_dir = Path(tempfile.mkdtemp(prefix="aurora-"))
    run_dir.chmod(0o711)
    os.environ["TMPDIR"] = tempfile.tempdir = str(run_dir)
    config.stash[_RUN_DIR] = run_dir
    hold_secret()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it, unless AURORA_TEST_KEEP is set."""
    run_dir = config.stash.get(_RUN_DIR, None)
    if run_dir is None:
        return
    tempfile.tempdir = None
    os.environ.pop("TMPDIR", None)
    if not os.environ.get("AURORA_TEST_KEEP"):
        remove_tree(run_dir)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What this run can do besides."""
    parser.addoption("--record-durations", action="store_true", help="keep what each file took in tests/durations.json")


def _leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out the tests of an engine that is no part of the environment and not on this machine."""
    why = missing_engine()
    lost = [item for item in items if why and item.get_closest_marker("mariadb")]
    if lost:
        items[:] = [item for item in items if not item.get_closest_marker("mariadb")]
        config.hook.pytest_deselected(items=lost)


def pytest_report_header() -> str | None:
    """Which tests do not run here."""
    why = missing_engine()
    return f"MariaDB's tests are left out: {why}" if why else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scale the timeout of every test; with workers, files stand in the order in which they are handed out."""
    _leave_out(config, items)
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        place = {file.path: place for place, file in enumerate(packed(_files(config, items), workers))}
        items.sort(key=lambda item: place[_path(config, item)])
    default_s = float(config.getini("timeout") or 0)
    for item in items:
        marker = item.get_closest_marker("timeout")
        timeout_s = marker.args[0] if marker and marker.args else default_s
        item.add_marker(pytest.mark.timeout(timeout_s * TIMEOUT_FACTOR * TEST_FACTOR), append=False)


def _files(config: pytest.Config, items: list[pytest.Item]) -> list[File]:
    """The files of `items`, with what is known of how long each takes."""
    of_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        of_file.setdefault(_path(config, item), []).append(item)
    recorded = recorded_s()
    found = []
    for path, tests in of_file.items():
        markers = {marker.name for item in tests for marker in item.iter_markers()}
        seconds = recorded.get(path)
        found.append(File(path, guessed_s(markers, len(tests)) if seconds is None else seconds, "ray" in markers))
    return found


def _path(config: pytest.Config, item: pytest.Item) -> str:
    return item.path.relative_to(config.rootpath).as_posix()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Sum up what each file took, its shared set-up included."""
    path = report.nodeid.partition("::")[0]
    _TOOK_S[path] = _TOOK_S.get(path, 0.0) + report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep it, if that was asked for: by the process that hears of every test."""
    if session.config.getoption("--record-durations", default=False) and "PYTEST_XDIST_WORKER" not in os.environ:
        record(_TOOK_S)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the garbage collector look at what tests make only: the tests themselves are a million objects by now, and
    each collection, of which closing a database asks for one, would go through all of them.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def run_dir(pytestconfig: pytest.Config) -> Path:
    """The run's temporary directory, which others may pass through (`tmp_path` is closed to other accounts)."""
    return pytestconfig.stash[_RUN_DIR]


@pytest.fixture(scope="session")
def leak_detector(run_dir: Path) -> Iterator[LeakDetector]:
    """The run's leak detector."""
    detector = LeakDetector(run_dir)
    yield detector
    detector.close()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_by_the_run(leak_detector: LeakDetector) -> Iterator[None]:
    """After the last test, what session and module fixtures started must have gone too."""
    before = leak_detector.snapshot()
    yield
    leaks = leak_detector.leaks_since(before, allowed=("tmp",))
    if leaks:
        pytest.fail("the test run left behind: " + "; ".join(leaks))


@pytest.fixture(autouse=True)
def _nothing_left_by_the_test(request: pytest.FixtureRequest, leak_detector: LeakDetector) -> Iterator[None]:
    allowed = [kind for marker in request.node.iter_markers("allowed_leaks") for kind in marker.args]
    before = leak_detector.snapshot()
    yield
    leaks = leak_detector.leaks_since(before, allowed)
    if leaks:
        pytest.fail("the test left behind: " + "; ".join(leaks))


@pytest.fixture(autouse=True)
def _no_unlisted_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    patterns = [pattern for marker in request.node.iter_markers("allowed_logs") for pattern in marker.args]
    recorder = LogRecorder()
    logging.getLogger().addHandler(recorder)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(recorder)
    unlisted = recorder.unlisted(patterns)
    if unlisted:
        pytest.fail("logged, but not announced by @pytest.mark.allowed_logs: " + "; ".join(unlisted))


@pytest.fixture(scope="session")
def ports() -> PortAllocator:
    """Free TCP ports: `ports.allocate()`."""
    return PortAllocator()


@pytest.fixture
def free_port(ports: PortAllocator) -> int:
    """One free TCP port."""
    return ports.allocate()


@pytest.fixture
def data_dir(run_dir: Path) -> Iterator[Path]:
    """An empty directory that the engine's account can reach, with a short path; removed after the test."""
    path = Path(tempfile.mkdtemp(prefix="d", dir=run_dir))
    path.chmod(0o755)
    yield path
    remove_tree(path)
