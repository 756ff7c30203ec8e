"""An object store: S3 over a socket, with a bucket, behind a link that can fail."""

from __future__ import annotations

import logging
import os
from types import TracebackType
from typing import Final, Self

import boto3
from moto.server import ThreadedMotoServer

from tests.harness.weak_link import WeakLink
from trainer.storage import Storage, open_storage

__all__ = ["ObjectStore", "copy_blobs"]

BUCKET: Final = "simclr"


class ObjectStore:
    """While entered, it answers at an address of `host`; it forgets everything when it ends."""

    def __init__(self, *, host: str = "127.0.0.1") -> None:
        self._server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
        self._host = host

    def __enter__(self) -> Self:
        self._server.start()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
        self.link = WeakLink(self._server.get_host_and_port(), host=self._host).__enter__()
        client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL_S3"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        return self

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
        return f"s3://{BUCKET}/{name}"

    def use(self) -> None:
        """Let this process find it."""
        os.environ.update(self.environment)


def copy_blobs(source: Storage, uri: str) -> None:
    """Put every blob of `source` into the storage at `uri`."""
    target = open_storage(uri)
    for key in source.list(""):
        target.write(key, source.read(key))
