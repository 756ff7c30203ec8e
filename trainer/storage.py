"""Storage: named blobs in a directory or an S3 bucket, for checkpoints, markers and metrics.

Every write is whole or absent, and `create` is conditional: of two writers one wins. The rest of
the code builds its guarantees on just these two properties, so that a directory and an object
store behave alike. Keys are relative, '/'-separated, and never leave the root.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

__all__ = ["BlobMissing", "DirectoryStorage", "S3Storage", "Storage", "open_storage"]


STREAMED_BYTES: Final = 2**20  # of an object, in memory at a time
_CONFLICT_PATIENCE_S: Final = (0.1, 0.3, 1.0)  # between tries to create what another is creating


class BlobMissing(KeyError):
    """There is no blob under this key."""


class Storage(Protocol):
    """Named blobs. Implementations raise OSError (or a subclass) when storage is unreachable."""

    def read(self, key: str) -> bytes:
        """Return the blob, or raise BlobMissing."""

    def write(self, key: str, data: bytes) -> None:
        """Put or replace the blob, durably; a reader sees the old bytes or the new, never a mix."""

    def create(self, key: str, data: bytes) -> bool:
        """Put the blob only where none is; return whether this call put it.

        Creators that compete write different bytes: a nonce or a time in them tells them apart.
        """

    def list(self, prefix: str) -> list[str]:
        """Return the keys that start with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove the blob; removing what is not there is no error."""


def open_storage(uri: str) -> Storage:
    """Return the storage at a directory or an `s3://bucket/prefix` address.

    Raises:
        ValueError: If the scheme is neither.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return S3Storage.at(uri)
    if parts.scheme in ("", "file"):
        return DirectoryStorage(Path(parts.path if parts.scheme else uri))
    raise ValueError(f"storage {uri!r}: use a directory or s3://bucket/prefix")


class DirectoryStorage:
    """Blobs as files under one directory, synced and renamed into place.

    The directory is made here and never again: who has it open must not go on in an empty one when
    a disk or a share is gone, as if there had been nothing before.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        with suppress(OSError):  # what is wrong with it is said by each use
            self._root.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise BlobMissing(key) from error

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        temporary = self._write_temporary(path, data)
        temporary.replace(path)
        _sync_directory(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        temporary = self._write_temporary(path, data)
        try:
            os.link(temporary, path)  # fails where the name exists, unlike a rename
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
        return True

    def list(self, prefix: str) -> list[str]:
        self._require_root()
        folder = self._root / prefix.rpartition("/")[0]
        found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".tmp-"))
        keys = (path.relative_to(self._root).as_posix() for path in found)
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(parts) or any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
            raise ValueError(f"storage key {key!r}: use relative, '/'-separated names")
        self._require_root()
        return self._root.joinpath(*parts)

    def _require_root(self) -> None:
        if not self._root.is_dir():
            raise OSError(f"the storage directory {self._root} is not there")

    @staticmethod
    def _write_temporary(path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".tmp-{secrets.token_hex(8)}"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_SET_KEY: Final = "see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of this node: the bucket is not open to them"
_WAYS_OUT: Final = {
    "AccessDenied": _SET_KEY,
    "InvalidAccessKeyId": _SET_KEY,
    "SignatureDoesNotMatch": _SET_KEY,
    "ExpiredToken": _SET_KEY,
    "InvalidToken": _SET_KEY,
    "NoCredentialsError": _SET_KEY,
    "PartialCredentialsError": _SET_KEY,
    "NoSuchBucket": "see the storage's address, SIMCLR_STORAGE or SIMCLR_DATASETS: no bucket has this name",
    "EntityTooLarge": "an object that is put at once holds 5 GiB at most",
    "EndpointConnectionError": "see AWS_ENDPOINT_URL_S3 of this node: nothing answers there",
    "ConnectTimeoutError": "see AWS_ENDPOINT_URL_S3 of this node: nothing answers there",
    "NoRegionError": "set AWS_DEFAULT_REGION on this node",
}


class S3Storage:
    """Blobs as objects of one bucket; credentials and endpoint come from the node's AWS settings."""

    def __init__(self, *, bucket: str, prefix: str, client: S3Client | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client or _s3_client()

    @classmethod
    def at(cls, address: str) -> S3Storage:
        """Return the storage at an `s3://bucket/prefix` address."""
        parts = urlsplit(address)
        return cls(bucket=parts.netloc, prefix=parts.path.strip("/"))

    def read(self, key: str) -> bytes:
        with _named_errors("read", key):
            return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()

    def write(self, key: str, data: bytes) -> None:
        with _named_errors("write", key):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        for patience_s in _CONFLICT_PATIENCE_S:
            with _named_errors("create", key):
                try:
                    self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
                except ClientError as error:
                    if _error_code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                        raise
                else:
                    return True
            try:
                # The client repeats a request whose answer was lost, and then meets its own object.
                return self.read(key) == data
            except BlobMissing:  # another's creation is under way, or came to nothing
                time.sleep(patience_s)
        raise OSError(f"storage cannot create {key}: another creation of it neither ends nor leaves anything")

    def list(self, prefix: str) -> list[str]:
        with _named_errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            start = len(self._prefix)
            return sorted(item["Key"][start:] for page in pages for item in page.get("Contents", ()))

    def delete(self, key: str) -> None:
        with _named_errors("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    # --- what only objects need: they are larger than blobs, and are listed with all that is in a bucket

    def under(self, name: str) -> S3Storage:
        """Return the storage at a prefix of this one; they share connections."""
        return S3Storage(bucket=self._bucket, prefix=f"{self._prefix}{name}", client=self._client)

    def folders(self) -> tuple[str, ...]:
        """Return the names that keys begin with, up to their first '/', sorted; what is under them is not listed."""
        with _named_errors("list", ""):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            found = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ()))
            return tuple(sorted(prefix[len(self._prefix) : -1] for prefix in found))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each object by its key."""
        with _named_errors("list", ""):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            found = (item for page in pages for item in page.get("Contents", ()))
            return {item["Key"][len(self._prefix) :]: item["Size"] for item in found}

    def stream(self, key: str) -> Iterator[bytes]:
        """Yield the object in pieces of STREAMED_BYTES, or raise BlobMissing."""
        with _named_errors("read", key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(STREAMED_BYTES)

    def upload(self, key: str, path: Path) -> None:
        """Put or replace the object by what is in a file, of 5 GiB at most; it appears whole."""
        with _named_errors("write", key), path.open("rb") as file:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=file)


@contextmanager
def _named_errors(verb: str, key: str) -> Iterator[None]:
    """Turn what S3 refuses into OSError, as a directory says it."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = _error_code(error)
        if code in ("NoSuchKey", "404"):
            raise BlobMissing(key) from error
        raise OSError(f"storage cannot {verb} {key}: {_in_words(code)}") from error
    except BotoCoreError as error:
        raise OSError(f"storage cannot {verb} {key}: {_in_words(type(error).__name__)}") from error


def _in_words(code: str) -> str:
    """Return what S3 or its client calls the error, and the setting that mends it where one does."""
    return f"{code}; {_WAYS_OUT[code]}" if code in _WAYS_OUT else code


def _s3_client() -> S3Client:
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 3}, max_pool_connections=16)
    return boto3.client("s3", config=config)


def _error_code(error: Exception) -> str:
    response = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))
