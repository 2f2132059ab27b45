"""A directory and an S3 server do the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aurora_ray.backup.bucket import Bucket, Found, NoObjectError, normal_url
from aurora_ray.backup.frame import Key
from aurora_ray.backup.store import Store
from aurora_ray.errors import BackupError, UsageError
from tests.backup.support import backed_up, backing_up, restored
from tests.replication.regions import Copy, Scribe, content_of
from tests.volume.cluster import running

if TYPE_CHECKING:
    from pathlib import Path

S3 = pytest.mark.allowed_leaks("process", "port", "tmp")  # the server is there until the session ends


@pytest.fixture(params=["directory", pytest.param("s3", marks=S3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "bucket") if request.param == "directory" else request.getfixturevalue("s3_url")


async def test_objects_are_made_once_read_in_part_listed_and_removed(url: str) -> None:
    bucket = Bucket.at(url)
    assert await bucket.put_new("a/b/1", b"0123456789")
    assert not await bucket.put_new("a/b/1", b"other")
    await bucket.put("a/c", b"old")
    await bucket.put("a/c", b"new one")
    assert await bucket.get("a/b/1") == b"0123456789"
    assert await bucket.get("a/c") == b"new one"
    assert await bucket.get_part("a/b/1", 3, 4) == b"3456"
    assert await Bucket.at(url).listing() == [Found("a/b/1", 10), Found("a/c", 7)]
    assert await bucket.listing("a/b") == [Found("a/b/1", 10)]
    assert await bucket.listing("a/x") == []
    assert await bucket.directories() == ["a"]
    assert await bucket.directories("a") == ["b"]
    with pytest.raises(NoObjectError):
        await bucket.get("a/x")
    await bucket.delete(["a/x", "a/b/1", "a/y"])
    assert await bucket.listing() == [Found("a/c", 7)]


def test_a_url_without_sense_is_refused() -> None:
    for wrong in ("", "ftp://x/y", "s3://bucket?secret=1", "s3://me:secret@bucket"):
        with pytest.raises(UsageError):
            normal_url(wrong)
    assert normal_url("file:///a/b") == "/a/b"


async def test_a_server_that_is_away_is_an_error_that_may_pass() -> None:
    bucket = Bucket.at("s3://bucket/x?region=us-east-1&endpoint=http://127.0.0.1:1")
    with pytest.raises(BackupError) as raised:
        await bucket.get("a")
    assert raised.value.retryable


@S3
@pytest.mark.allowed_logs("due to server stop")
async def test_an_encrypted_backup_in_s3_is_restored(s3_url: str, tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    async with running(tmp_path / "nodes") as cluster:
        scribe = Scribe(await cluster.open(), seed=11)
        store = Store(Bucket.at(s3_url), f"fleet/{cluster.spec.volume_id}", Key(bytes(range(32))))
        async with backing_up(cluster, store) as stream:
            await backed_up(stream, await scribe.write(20))
            lsn = await scribe.write(40)
            await backed_up(stream, lsn)
        assert await restored(store, lsn) == await content_of(Copy(cluster), lsn)
