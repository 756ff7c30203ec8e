"""Fetch a packed data set from its bucket into a folder: shard by shard, and what is there is not fetched again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer.data.bucket_files import BucketFiles
from trainer.data.files import whole_file
from trainer.data.manifest import FIELDS, MANIFEST, Manifest, values_file
from trainer.data.packed import check
from trainer.data.packed_files import FolderFiles
from trainer.data.shards import Shard, WrittenShard, damaged, read_shard
from trainer.errors import DataError

__all__ = ["fetch"]

NUM_FETCHED: Final = 8  # shards at a time; one connection seldom fills a link


def fetch(files: BucketFiles, manifest: Manifest, folder: Path) -> None:
    """Make a folder the packed data set that a bucket holds, each file being checked and the manifest written last.

    Args:
        files: Where it is.
        manifest: What it holds, each shard being there in full size.
        folder: Exists; shards in it that are whole by their sha256 stay, and others are replaced.

    Raises:
        DataError: If an object is not what the manifest says; names it.
        StorageUnavailable: If the bucket does not answer.
        OSError: If the folder cannot be written.
    """
    shards = (*manifest.train, *manifest.test)
    for path in folder.iterdir():
        if path.name not in {shard.file for shard in shards}:
            path.unlink()  # of another cut, or half-written by one that was killed
    local = FolderFiles(folder, name=files.name)
    with ThreadPoolExecutor(NUM_FETCHED) as pool:
        written = list(pool.map(lambda shard: _shard(files, local, shard, manifest.image_size), shards))
    for file in (values_file(part, field) for part in ("train", "test") for field in FIELDS):
        if file in files.sizes():
            _fetch(files, file, folder)
    check(local, manifest, written)
    with whole_file(folder / MANIFEST) as path:
        path.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _shard(files: BucketFiles, local: FolderFiles, shard: Shard, image_size: int) -> WrittenShard:
    with suppress(DataError):  # it is not there, or not whole
        return read_shard(local, shard, image_size=image_size)
    _fetch(files, shard.file, local.path)
    return read_shard(local, shard, image_size=image_size)


def _fetch(files: BucketFiles, file: str, folder: Path) -> None:
    with whole_file(folder / file) as path:
        try:
            files.fetch(file, path)
        except FileNotFoundError as error:
            raise damaged(files.name, file, "No such file") from error
