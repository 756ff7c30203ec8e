"""An object store: S3 over a socket, with a bucket, behind a link that can fail."""

from __future__ import annotations

import itertools
import logging
import os
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import boto3
from moto.server import ThreadedMotoServer

from tests.harness.weak_link import WeakLink
from trainer.storage import Storage, open_storage

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

__all__ = ["ObjectStore", "copy_blobs"]

_numbers: Final = itertools.count()


class ObjectStore:
    """While entered, it answers at an address of `host`; no other sees what is in it."""

    def __init__(self, *, host: str = "127.0.0.1", bucket: str | None = None) -> None:
        self._server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
        self._host = host
        # The servers of a process share what is in them: a name of its own keeps one's out of another's.
        self.bucket = bucket or f"simclr-{next(_numbers)}"
        self._backup = f"{self.bucket}-backup"

    def __enter__(self) -> Self:
        self._server.start()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
        self.link = WeakLink(self._server.get_host_and_port(), host=self._host).__enter__()
        for bucket in (self.bucket, self._backup):
            self._client().create_bucket(Bucket=bucket)
        return self

    def _client(self) -> S3Client:
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL_S3"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.link.__exit__(kind, error, trace)
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which a process finds it."""
        host, port = self.link.address
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def uri(self, name: str) -> str:
        """Return the address of a storage in its bucket."""
        return f"s3://{self.bucket}/{name}"

    def back_up(self) -> None:
        """Make the backup what the bucket is, as `aws s3 sync --delete` does."""
        self._sync(self.bucket, self._backup)

    def restore(self) -> None:
        """Make the bucket what the backup is."""
        self._sync(self._backup, self.bucket)

    def empty(self) -> None:
        """Lose all that is in the bucket."""
        for key in self._keys(self.bucket):
            self._client().delete_object(Bucket=self.bucket, Key=key)

    def _sync(self, source: str, target: str) -> None:
        client, wanted = self._client(), self._keys(source)
        for key in wanted:
            client.copy_object(Bucket=target, Key=key, CopySource={"Bucket": source, "Key": key})
        for key in self._keys(target) - wanted:
            client.delete_object(Bucket=target, Key=key)

    def _keys(self, bucket: str) -> set[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {found["Key"] for page in pages for found in page.get("Contents", ())}

    def use(self) -> None:
        """Let this process find it."""
        os.environ.update(self.environment)


def copy_blobs(source: Storage, uri: str) -> None:
    """Put every blob of `source` into the storage at `uri`."""
    target = open_storage(uri)
    for key in source.list(""):
        target.write(key, source.read(key))
