"""Secrets in the declared state: never in clear in what is stored, and readable again by whoever holds the fleet's."""

from dataclasses import replace

import msgpack
import pytest

from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.sealing import seal, secret_fields, unseal
from aurora_ray.control.model.state import DBCluster
from aurora_ray.rpc.admission import OURS, Secret
from tests.control.fleets import created, running_fleet

PASSWORD = "correct horse battery staple"  # noqa: S105


def test_no_password_is_stored_in_clear() -> None:
    fleet = running_fleet()
    fleet = fleet.with_cluster(replace(fleet.clusters[0], superuser_password=PASSWORD))
    stored = pack(fleet)
    assert PASSWORD.encode() not in stored
    assert OURS.secret.raw not in stored
    assert unpack(stored) == fleet
    assert pack(fleet) == stored, "what has not changed is stored as before, so no page of it is written"


def test_every_field_that_sounds_like_a_secret_is_one() -> None:
    named = {name for name in DBCluster.__dataclass_fields__ if "password" in name or "secret" in name}
    assert named <= set(secret_fields(DBCluster))
    assert "superuser_password" in secret_fields(DBCluster)


def test_what_an_earlier_version_wrote_in_clear_is_read_and_sealed() -> None:
    fleet = created(running_fleet())
    document = msgpack.unpackb(pack(fleet))
    document["format"] = 1
    for cluster in document["fleet"]["clusters"]:
        cluster["superuser_password"] = PASSWORD
    read = unpack(msgpack.packb(document))
    assert read.clusters[0].superuser_password == PASSWORD
    assert PASSWORD.encode() not in pack(read)


@pytest.mark.allowed_logs("another secret")
def test_a_value_is_bound_to_its_field_and_its_fleet(caplog: pytest.LogCaptureFixture) -> None:
    sealed = seal("A.x", PASSWORD)
    assert unseal("A.x", sealed) == PASSWORD
    for name, value, secret in (
        ("A.y", sealed, None),
        ("A.x", sealed, Secret.new()),
        ("A.x", sealed[:-8] + "AAAAAAA=", None),
        ("A.x", "sealed:1:no base64", None),
        ("A.x", "sealed:1:", None),
    ):
        substitute = unseal(name, value, secret)
        assert substitute != PASSWORD
        assert len(substitute) == 64
        assert "another secret" in caplog.text
        caplog.clear()


@pytest.mark.allowed_logs("another secret")
def test_a_lost_secret_costs_the_password_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = created(running_fleet())
    stored = pack(fleet)
    monkeypatch.setattr(OURS, "_secret", Secret.new())
    read = unpack(stored)
    substitute = read.clusters[0].superuser_password
    assert substitute != fleet.clusters[0].superuser_password
    assert unpack(stored) == read, "the same each time: it is the password from now on"
    assert unpack(pack(read)).clusters[0].superuser_password == substitute
