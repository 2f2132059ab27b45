"""Real engines on plain directories."""

import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from aurora_ray.engine.account import EngineAccount, find_account
from aurora_ray.engine.base import Engine, EngineInstall, StopMode
from aurora_ray.engine.postgres.control_file import ClusterIdentity
from aurora_ray.engine.postgres.image import PreparedImage, prepare_image
from aurora_ray.engine.postgres.install import discover
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import ConfigurationError
from aurora_ray.log.record import Record
from tests.engine.plain import build_tree
from tests.support.leaks import remove_tree

INSTALLS = {install.major: install for install in reversed(discover())}
NEWEST = max(INSTALLS)


@pytest.fixture(scope="session")
def account() -> EngineAccount:
    try:
        return find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image_cache(run_dir: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="images", dir=run_dir))
    path.chmod(0o755)
    yield path
    remove_tree(path)


@pytest.fixture
def install() -> EngineInstall:
    """The newest; tests of all versions parametrise this."""
    return INSTALLS[NEWEST]


@pytest.fixture
def image(install: EngineInstall, account: EngineAccount, image_cache: Path) -> PreparedImage:
    return prepare_image(install, account, image_cache)


@pytest.fixture
def records(image: PreparedImage) -> list[Record]:
    return list(image.records(ClusterIdentity.new(time.time())))


@pytest.fixture
def cluster(records: list[Record], data_dir: Path, account: EngineAccount) -> Path:
    """A new cluster's data directory, built from records."""
    path = data_dir / "data"
    build_tree(records, path, account)
    return path


@pytest.fixture
async def make_engine(
    install: EngineInstall, account: EngineAccount, data_dir: Path
) -> AsyncIterator[Callable[..., PostgresEngine]]:
    engines: list[Engine] = []

    def make(**options: object) -> PostgresEngine:
        given = {"install": install, "account": account, "run_dir": data_dir / "run"}
        engine = PostgresEngine(**{**given, **options})  # type: ignore[arg-type]
        as_engine: Engine = engine  # mypy: it is one
        engines.append(as_engine)
        return engine

    yield make
    for engine in engines:
        await engine.stop(StopMode.KILL, timeout_s=10)


@pytest.fixture
def engine(make_engine: Callable[..., PostgresEngine]) -> PostgresEngine:
    return make_engine()
