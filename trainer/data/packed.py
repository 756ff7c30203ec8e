"""A packed data set as a source, and opened to train on where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset, Subset
from trainer.data.manifest import (
    FIELDS,
    MANIFEST,
    Digests,
    Manifest,
    Values,
    dataset_digest,
    read_manifest,
    read_values,
)
from trainer.data.mapped import MappedImages
from trainer.data.packed_files import FolderFiles, PackedFiles, files_at
from trainer.data.pixels import ArrayBlocks
from trainer.data.shards import Shard, WrittenShard, read_shard
from trainer.data.source import DatasetInfo, SourceSplit, SourceSplits
from trainer.data.split import held_out
from trainer.errors import DataError

__all__ = ["PackedSource", "check", "is_packed", "open_packed", "packed_info", "verify"]

NUM_READERS: Final = 8  # shards read at a time, to check them


def is_packed(folder: Path) -> bool:
    """Return whether a folder is a packed data set."""
    return (folder / MANIFEST).is_file()


def packed_info(name: str, manifest: Manifest) -> DatasetInfo:
    """Return the catalogue entry of a packed data set."""
    return DatasetInfo(
        name=name,
        description=f"Packed by the operator at {manifest.image_size} px",
        num_train=manifest.num_train,
        num_test=manifest.num_test,
        num_classes=len(manifest.class_names) if manifest.class_names is not None else None,
        channels=3,
        native_image_size=manifest.image_size,
        has_labels=manifest.class_names is not None,
        licence="unknown",
        source="operator",
    )


class PackedSource:
    """A packed data set in a folder; at another size than its own it is decoded like any other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = FolderFiles(folder)

    def manifest(self) -> Manifest:
        """Return its manifest, each shard being there in full size."""
        return read_manifest(self._files)

    def info(self) -> DatasetInfo:
        """Return the catalogue entry, from the manifest and the sizes of the files."""
        return packed_info(self.folder.name, self.manifest())

    def fingerprint(self) -> str:
        """Return the digest of what is packed."""
        return f"packed {self.manifest().digest}"

    def open(self) -> SourceSplits:
        """Return the splits; pixels are read as blocks are asked for."""
        manifest = self.manifest()
        return SourceSplits(
            train=self._split("train", manifest.train, manifest),
            test=self._split("test", manifest.test, manifest) if manifest.num_test else None,
            class_names=manifest.class_names,
            warnings=manifest.warnings,
        )

    def _split(self, part: str, shards: tuple[Shard, ...], manifest: Manifest) -> SourceSplit:
        images = MappedImages(self.folder, shards, image_size=manifest.image_size)
        labels, groups = (read_values(self._files, part=part, field=field, num_images=len(images)) for field in FIELDS)
        return SourceSplit(num_images=len(images), blocks=ArrayBlocks(images), labels=labels, groups=groups)


def open_packed(folder: Path, manifest: Manifest, *, name: str, validation_ratio: float) -> Dataset:
    """Return a packed data set at its own size, mapped.

    Raises:
        DataError: If its labels cannot be read; names the file.
    """
    files = FolderFiles(folder, name=name)
    images = MappedImages(folder, manifest.train, image_size=manifest.image_size)
    labels, groups = (read_values(files, part="train", field=field, num_images=len(images)) for field in FIELDS)
    is_validation = held_out(
        num_images=len(images),
        labels=labels,
        groups=groups,
        ratio=validation_ratio,
        key=f"validation split {manifest.digest}",
    )

    def subset(rows: NDArray[np.int64]) -> Subset:
        return Subset(array=images, sample_ids=rows, labels=None if labels is None else labels[rows])

    def read_test() -> Subset:
        test = MappedImages(folder, manifest.test, image_size=manifest.image_size)
        test_labels = read_values(files, part="test", field="labels", num_images=len(test))
        return Subset(array=test, sample_ids=np.arange(len(test)), labels=test_labels)

    return Dataset(
        name=name,
        image_size=manifest.image_size,
        digest=manifest.digest,
        class_names=manifest.class_names,
        pretrain=subset(np.flatnonzero(~is_validation)),
        validation=subset(np.flatnonzero(is_validation)),
        num_test=manifest.num_test,
        warnings=manifest.warnings,
        _test=read_test,
    )


def verify(place: str | Path) -> Manifest:
    """Read all of the packed data set in a folder or at `s3://bucket/prefix/NAME` and return its manifest.

    Raises:
        DataError: If anything in it is not what was written; names the first such file.
        StorageUnavailable: If its bucket does not answer.
    """
    files = files_at(place)
    manifest = read_manifest(files)
    shards = (*manifest.train, *manifest.test)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        written = list(pool.map(lambda shard: read_shard(files, shard, image_size=manifest.image_size), shards))
    check(files, manifest, written)
    return manifest


def check(files: PackedFiles, manifest: Manifest, written: Iterable[WrittenShard]) -> None:
    """See that the manifest is of these shards, all that it has, and of the labels and groups beside them.

    Raises:
        DataError: If it is not.
        StorageUnavailable: If their bucket does not answer.
    """
    images = {shard.shard.file: shard.image_digests for shard in written}
    digests: Digests = {}
    values: Values = {}
    for part, shards in (("train", manifest.train), ("test", manifest.test)):
        if not shards:
            continue
        digests[part] = b"".join(images[shard.file] for shard in shards)
        for field in FIELDS:
            num_images = sum(shard.num_images for shard in shards)
            if (stored := read_values(files, part=part, field=field, num_images=num_images)) is not None:
                values[part, field] = stored
    if dataset_digest(manifest.image_size, manifest.class_names, digests, values) != manifest.digest:
        raise DataError(f"the labels or {MANIFEST} of {files.name} are not what was written; pack with --resume")
