import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.postgres import image as postgres_image
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, ClusterIdentity, system_identifier
from aurora_ray.engine.postgres.image import FORMAT, PreparedImage, prepare_image
from aurora_ray.engine.postgres.install import find_install
from aurora_ray.errors import ConfigurationError, EngineError
from aurora_ray.log.layout import RecordType
from tests.engine.conftest import INSTALLS
from tests.engine.plain import build_tree

pytestmark = pytest.mark.postgres


def control_data(install: EngineInstall, tree: Path) -> dict[str, str]:
    command = [str(install.bin_dir / "pg_controldata"), "-D", str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env={"LC_ALL": "C"})
    assert "WARNING" not in done.stdout + done.stderr
    return {label: value.strip() for label, _, value in (line.partition(":") for line in done.stdout.splitlines())}


@pytest.mark.parametrize("install", INSTALLS.values(), ids=lambda install: install.version)
def test_each_cluster_has_an_identity_of_its_own(
    install: EngineInstall, image: PreparedImage, data_dir: Path, account: EngineAccount
) -> None:
    identity = ClusterIdentity.new(1_700_000_000.0)
    build_tree(image.records(identity), data_dir / "one", account)
    facts = control_data(install, data_dir / "one")
    assert facts["Database system identifier"] == str(identity.system_identifier)
    assert facts["Mock authentication nonce"] == identity.nonce.hex()
    assert facts["Database cluster state"] == "shut down"
    assert facts["Data page checksum version"] == "1"
    assert system_identifier((image.tree / os.fsdecode(CONTROL_PATH)).read_bytes()) == image.system_identifier


def test_the_image_is_bare_and_ends_with_the_control_file(image: PreparedImage) -> None:
    names = {str(path.relative_to(image.tree)) for path in image.tree.rglob("*")}
    assert not [name for name in names if "postmaster" in name or "pg_internal" in name or name.endswith(".log")]
    assert len([name for name in names if name.startswith("pg_wal/0")]) == 1
    hba = [line.split() for line in (image.tree / "pg_hba.conf").read_text().splitlines() if line[0] != "#"]
    assert {(words[0], words[-1]) for words in hba} == {("local", "trust"), ("host", "scram-sha-256")}
    records = list(image.records(ClusterIdentity.new(0.0)))
    created = [record.body for record in records if record.type is RecordType.CREATE]
    assert created[-1] == CONTROL_PATH
    assert sum(record.encoded_bytes for record in records) < 25_000_000  # the WAL segment's zeros are not in it


def test_it_is_made_once_for_any_number_of_callers(
    account: EngineAccount, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = postgres_image._build

    def counting(install: EngineInstall, account: EngineAccount, target: Path, timeout_s: float) -> None:
        built.append(target)
        build(install, account, target, timeout_s)

    monkeypatch.setattr(postgres_image, "_build", counting)
    install = find_install()
    left_behind = data_dir / f"postgres-{install.version}-{FORMAT}.tmp-dead" / "tree"
    left_behind.mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: prepare_image(install, account, data_dir), range(4)))
    assert len(built) == 1
    assert len(set(images)) == 1
    assert not list(data_dir.glob("*.tmp-*"))


def test_a_failed_initdb_leaves_nothing_and_says_why(
    account: EngineAccount, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_image, "SUPERUSER", "pg_reserved")
    with pytest.raises(EngineError, match=r"initdb failed: .*pg_reserved"):
        prepare_image(find_install(), account, data_dir)
    assert [path.name for path in data_dir.iterdir() if not path.name.endswith(".lock")] == []


def test_a_damaged_manifest_is_named(account: EngineAccount, data_dir: Path) -> None:
    target = data_dir / f"postgres-{find_install().version}-{FORMAT}"
    target.mkdir()
    (target / "manifest.json").write_text("{}")
    with pytest.raises(EngineError, match="damaged, remove that directory"):
        prepare_image(find_install(), account, data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs engines as someone else")
def test_a_cache_out_of_reach_is_refused(account: EngineAccount, data_dir: Path) -> None:
    (data_dir / "closed").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="cannot enter"):
        prepare_image(find_install(), account, data_dir / "closed" / "cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs engines as someone else")
def test_engines_cannot_change_what_others_start_from(account: EngineAccount, image: PreparedImage) -> None:
    assert not account.can("-r", image.tree / "PG_VERSION")
