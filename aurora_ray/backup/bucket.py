"""Where objects are kept: a directory, or a bucket of S3 (or whatever else obstore knows) by its URL.

What correctness rests on: an object that was put is there for whoever asks afterwards, also after a power cut;
`put_new` makes an object or finds that there is one, in one step; a listing shows all that was put before it began.

Credentials of S3 come from the environment of the process (AWS_ACCESS_KEY_ID and so on, or the machine's role), never
from a command line; what is no secret may stand in the URL, as in s3://bucket/dir?region=eu-1&endpoint=http://host:9000.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from aurora_ray.durable import sync_dir
from aurora_ray.errors import BackupError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obstore.store import ObjectStore

CALL_TIMEOUT_S: Final = 60.0
_DELETE_AT_ONCE: Final = 500
_OPTIONS: Final = {"region": "aws_region", "endpoint": "aws_endpoint"}


class Found(NamedTuple):
    """An object in a listing."""

    name: str
    nbytes: int


class NoObjectError(BackupError):
    """There is no such object."""

    retryable = False


def normal_url(url: str) -> str:
    """The same for every way of writing it: a directory as its absolute path. Raises UsageError."""
    parts = urlsplit(url)
    if not url or (parts.scheme and parts.scheme not in ("file", "s3", "s3a", "gs", "az")):
        raise UsageError(f"{url!r} is no place for backups: say a directory, or s3://bucket/directory")
    if parts.scheme in ("", "file"):
        return str(Path(parts.path if parts.scheme else url).expanduser().absolute())
    unknown = sorted({name for name, _ in parse_qsl(parts.query)} - _OPTIONS.keys())
    if unknown or "@" in parts.netloc:
        raise UsageError(f"a URL takes the options {', '.join(_OPTIONS)}; credentials come from the environment")
    return url


class Bucket:
    """Objects below one place. Names are relative to it."""

    def __init__(self, store: ObjectStore, root: Path | None, url: str) -> None:
        """Not to be called: `at` does."""
        self.url = url
        self._store, self._root = store, root

    @classmethod
    def at(cls, url: str) -> Bucket:
        """What lies at that URL; a directory is made. Raises UsageError, BackupError."""
        url = normal_url(url)
        try:
            if url.startswith("/"):
                Path(url).mkdir(parents=True, exist_ok=True, mode=0o700)
                return cls(LocalStore(prefix=url), Path(url), url)
            parts = urlsplit(url)
            config = {_OPTIONS[name]: value for name, value in parse_qsl(parts.query)}
            plain = config.get("aws_endpoint", os.environ.get("AWS_ENDPOINT_URL", "")).startswith("http://")
            options = {"allow_http": "true"} if plain else {}
            bare = parts._replace(query="").geturl()
            made: Any = from_url  # its types know the options of each store by name
            return cls(made(bare, config=config, client_options=options), None, url)
        except (OSError, BaseError) as error:
            raise BackupError(f"{url} cannot be used for backups: {_first_line(error)}") from error

    async def put_new(self, name: str, data: bytes) -> bool:
        """Makes an object, unless there is one of that name: whether it was made. Raises BackupError; then nobody
        knows."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await obstore.put_async(self._store, name, data, mode="create", use_multipart=False)
                await self._sync(name)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError, TimeoutError) as error:
            raise self._error(f"{name} could not be written", error) from error
        return True

    async def put(self, name: str, data: bytes) -> None:
        """Makes an object or replaces it. Raises BackupError."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await obstore.put_async(self._store, name, data, use_multipart=False)
                await self._sync(name)
        except (BaseError, OSError, TimeoutError) as error:
            raise self._error(f"{name} could not be written", error) from error

    async def get(self, name: str) -> bytes:
        """An object. Raises NoObjectError, BackupError."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await obstore.get_async(self._store, name)
                return bytes(await answer.bytes_async())
        except (BaseError, OSError, TimeoutError) as error:
            raise self._error(f"{name} could not be read", error) from error

    async def get_part(self, name: str, at: int, nbytes: int) -> bytes:
        """Bytes of an object. Raises NoObjectError, BackupError."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return bytes(await obstore.get_range_async(self._store, name, start=at, length=nbytes))
        except (BaseError, OSError, TimeoutError) as error:
            raise self._error(f"{name} could not be read", error) from error

    async def listing(self, prefix: str = "") -> list[Found]:
        """The objects below `prefix`, a directory, by name. Raises BackupError."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                found = await obstore.list(self._store, prefix=prefix or None, chunk_size=1000).collect_async()
        except (BaseError, OSError, TimeoutError) as error:
            raise self._error(f"{prefix or 'all'} could not be listed", error) from error
        return sorted(Found(each["path"], each["size"]) for each in found)

    async def directories(self, prefix: str = "") -> list[str]:
        """The names of the directories in `prefix`. Raises BackupError."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                found = await obstore.list_with_delimiter_async(self._store, prefix=prefix or None)
        except (BaseError, OSError, TimeoutError) as error:
            raise self._error(f"{prefix or 'all'} could not be listed", error) from error
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    async def delete(self, names: Iterable[str]) -> None:
        """Removes objects; those that are gone already, too. Raises BackupError."""
        waiting = list(names)
        for at in range(0, len(waiting), _DELETE_AT_ONCE):
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await obstore.delete_async(self._store, waiting[at : at + _DELETE_AT_ONCE])
            except (NotFoundError, FileNotFoundError):
                for name in waiting[at : at + _DELETE_AT_ONCE]:
                    await self._delete_one(name)
            except (BaseError, OSError, TimeoutError) as error:
                raise self._error("objects could not be removed", error) from error

    async def forget_directory(self, name: str) -> None:
        """Where objects are files: removes a directory and those in it, as far as nothing is in them."""
        if self._root is not None:
            await asyncio.to_thread(_remove_empty, self._root / name)

    async def _delete_one(self, name: str) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await obstore.delete_async(self._store, name)
        except (NotFoundError, FileNotFoundError):
            pass
        except (BaseError, OSError, TimeoutError) as error:
            raise self._error(f"{name} could not be removed", error) from error

    async def _sync(self, name: str) -> None:
        if self._root is not None:
            await asyncio.to_thread(_sync_file, self._root, name)

    def _error(self, what: str, error: BaseException) -> BackupError:
        kind = NoObjectError if isinstance(error, NotFoundError | FileNotFoundError) else BackupError
        return kind(f"{self.url}: {what}: {_first_line(error)}")


def _remove_empty(directory: Path) -> None:
    for path, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):  # something is in it, or it is gone
            os.rmdir(path)


def _sync_file(root: Path, name: str) -> None:
    path = root / name
    sync_dir(path)  # a file's content is synced by the same call
    while path != root:
        path = path.parent
        sync_dir(path)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
