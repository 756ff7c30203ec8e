"""The manifest of a packed data set: how it was cut, what each shard holds, and one digest over all.

    manifest.json        written last: a folder, or prefix of a bucket, without it is no data set
    train-00000.raw ...  shards;  test-00000.raw ... where there is a test split
    train_labels.npy     and test_labels.npy, where there are labels; int64, aligned with the images
    train_groups.npy     and test_groups.npy, where the source has groups that never part

The digest is of the images, labels, groups and class names in the order of the source: it does not
depend on the cut, nor on what wrote the shards or in which order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from io import BytesIO
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.data.files import raise_if_passing
from trainer.data.labels import check_class_sizes
from trainer.data.packed_files import PackedFiles
from trainer.data.shards import IMAGE_DIGEST_BYTES, Shard, WrittenShard, damaged, image_bytes
from trainer.data.source import SourceSplit, SourceSplits, Stored
from trainer.errors import DataError

__all__ = [
    "FIELDS",
    "MANIFEST",
    "Digests",
    "Manifest",
    "Plan",
    "Values",
    "dataset_digest",
    "parse_manifest",
    "read_manifest",
    "read_values",
    "seal",
    "values_file",
]

MANIFEST: Final = "manifest.json"
FIELDS: Final = ("labels", "groups")
NUM_NAMED: Final = 3  # examples a warning gives

Digests = dict[str, bytes]  # part -> digests of its images
Values = dict[tuple[str, str], NDArray[np.int64]]  # part, field -> labels or groups


class Plan(BaseModel):
    """What decides every byte of a packed data set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    fingerprint: str  # of the source: names, sizes, times
    decoder: str  # decoders and filters may change with it
    image_size: int = Field(ge=1)
    images_per_shard: int = Field(ge=1)
    leaves_out_unreadable: bool = False

    @classmethod
    def of(cls, source: Stored, *, image_size: int, images_per_shard: int, leaves_out_unreadable: bool = False) -> Plan:
        """Return the plan for a source as it is now, and the decoder that is installed."""
        from PIL import __version__

        return cls(
            fingerprint=hashlib.sha256(source.fingerprint().encode()).hexdigest(),
            decoder=f"pillow {__version__}",
            image_size=image_size,
            images_per_shard=images_per_shard,
            leaves_out_unreadable=leaves_out_unreadable,
        )


class Manifest(BaseModel):
    """What a packed data set holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    plan: Plan
    class_names: tuple[str, ...] | None
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    digest: str
    warnings: tuple[str, ...]

    @property
    def image_size(self) -> int:
        """Return the pixels a side."""
        return self.plan.image_size

    @property
    def num_train(self) -> int:
        """Return the number of training images, validation included."""
        return sum(shard.num_images for shard in self.train)

    @property
    def num_test(self) -> int:
        """Return the number of test images."""
        return sum(shard.num_images for shard in self.test)


def read_manifest(files: PackedFiles) -> Manifest:
    """Return the manifest of a packed data set, all its shards being there in full size.

    Raises:
        DataError: If it cannot be read, or a shard is missing or cut short; names the file.
        StorageUnavailable: If its disk or share fails, or its bucket does not answer.
    """
    manifest = parse_manifest(files)
    try:
        sizes = files.sizes()
    except OSError as error:
        raise_if_passing(error, name=files.name)
        raise DataError(f"{files.name} cannot be read: {error.strerror}") from error
    for shard in (*manifest.train, *manifest.test):
        expected = shard.num_images * image_bytes(manifest.image_size)
        if shard.file not in sizes:
            raise damaged(files.name, shard.file, "No such file")
        if sizes[shard.file] != expected:
            raise damaged(files.name, shard.file, f"it has {sizes[shard.file]} bytes and should have {expected}")
    return manifest


def parse_manifest(files: PackedFiles) -> Manifest:
    """Return the manifest of a packed data set, whatever became of its shards.

    Raises:
        DataError: If it cannot be read; names the file.
        StorageUnavailable: If its disk or share fails, or its bucket does not answer.
    """
    name = f"{files.name}/{MANIFEST}"
    try:
        return Manifest.model_validate_json(files.read(MANIFEST))
    except OSError as error:
        raise_if_passing(error, name=name)
        raise DataError(f"{name} cannot be read: {error.strerror}", file=MANIFEST) from error
    except ValidationError as error:
        raise DataError(
            f"{name} is damaged or of another version; remove {files.name} and pack it again", file=MANIFEST
        ) from error


def read_values(files: PackedFiles, *, part: str, field: str, num_images: int) -> NDArray[np.int64] | None:
    """Return the labels or groups of a part, None if it has none.

    Raises:
        DataError: If the file is damaged, with its name.
        StorageUnavailable: If its disk or share fails, or its bucket does not answer.
    """
    file = values_file(part, field)
    try:
        values = np.load(BytesIO(files.read(file)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise_if_passing(error, name=f"{files.name}/{file}")
        raise damaged(files.name, file, str(error)) from error
    if values.dtype != np.int64 or values.shape != (num_images,):
        raise damaged(files.name, file, f"it holds {values.dtype} of shape {values.shape}")
    found: NDArray[np.int64] = values
    return found


def values_file(part: str, field: str) -> str:
    """Return the name of the file with the labels or groups of a part."""
    return f"{part}_{field}.npy"


def seal(
    files: PackedFiles,
    splits: SourceSplits,
    plan: Plan,
    *,
    train: Sequence[WrittenShard],
    test: Sequence[WrittenShard] = (),
) -> Manifest:
    """Write beside the shards what completes them, the manifest last.

    Raises:
        DataError: If what could be read is too little to train on.
        OSError: If something cannot be written.
    """
    parts = {"train": train} | ({"test": test} if splits.test is not None else {})
    kept = {part: _kept_rows(shards, plan) for part, shards in parts.items()}
    values: Values = {}
    for part, split in (("train", splits.train), ("test", splits.test)):
        for field in FIELDS if split is not None else ():
            if (stored := getattr(split, field)) is not None:
                values[part, field] = stored[kept[part]]
    if any(shard.shard.left_out for shard in train):
        check_class_sizes(
            values.get(("train", "labels")),
            num_images=len(kept["train"]),
            class_names=splits.class_names,
            where=f"{files.name}, without what cannot be read,",
        )
    digests = {part: b"".join(shard.image_digests for shard in shards) for part, shards in parts.items()}
    for (part, field), array in values.items():
        with files.writing(values_file(part, field)) as path, path.open("wb") as file:
            np.save(file, array)
    manifest = Manifest(
        plan=plan,
        class_names=splits.class_names,
        train=tuple(shard.shard for shard in train),
        test=tuple(shard.shard for shard in test),
        digest=dataset_digest(plan.image_size, splits.class_names, digests, values),
        warnings=(*splits.warnings, *_left_out_warnings(train, test), *_duplicate_warnings(splits, digests, kept)),
    )
    with files.writing(MANIFEST) as path:
        path.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def dataset_digest(image_size: int, class_names: tuple[str, ...] | None, digests: Digests, values: Values) -> str:
    """Return the digest of a data set.

    Args:
        image_size: Pixels a side.
        class_names: In the order of their labels.
        digests: Of the images of "train" and, if there are any, of "test".
        values: Labels and groups, where there are any.
    """
    digest = hashlib.sha256(json.dumps([image_size, class_names]).encode())
    for part, images in digests.items():
        digest.update(images)
        for field in FIELDS:
            if (part, field) in values:
                digest.update(f"{part} {field}".encode() + values[part, field].tobytes())
    return digest.hexdigest()


def _kept_rows(shards: Sequence[WrittenShard], plan: Plan) -> NDArray[np.int64]:
    """Return which images of a split its shards hold."""
    num_images = sum(shard.shard.num_images + len(shard.shard.left_out) for shard in shards)
    lost = [
        index * plan.images_per_shard + item.row for index, shard in enumerate(shards) for item in shard.shard.left_out
    ]
    return np.delete(np.arange(num_images), lost)


def _left_out_warnings(*parts: Sequence[WrittenShard]) -> list[str]:
    reasons = [item.why for shards in parts for shard in shards for item in shard.shard.left_out]
    if not reasons:
        return []
    return [f"{len(reasons)} images could not be read and were left out: {'; '.join(reasons[:NUM_NAMED])}"]


def _duplicate_warnings(splits: SourceSplits, digests: Digests, kept: dict[str, NDArray[np.int64]]) -> list[str]:
    if splits.test is None:
        return []
    test: dict[bytes, list[int]] = {}
    for index, digest in enumerate(_each(digests["test"])):
        test.setdefault(digest, []).append(index)
    twins = {digest: index for index, digest in enumerate(_each(digests["train"])) if digest in test}
    shared = sorted((index, twins[digest]) for digest, indices in test.items() if digest in twins for index in indices)
    if not shared:
        return []
    pairs = [
        f"{_shown(splits.test, kept['test'][index])} = {_shown(splits.train, kept['train'][twin])}"
        for index, twin in shared[:NUM_NAMED]
    ]
    return [f"{len(shared)} test images are also in the training set: {', '.join(pairs)}"]


def _each(digests: bytes) -> list[bytes]:
    return [digests[start : start + IMAGE_DIGEST_BYTES] for start in range(0, len(digests), IMAGE_DIGEST_BYTES)]


def _shown(split: SourceSplit, index: int) -> str:
    return split.names[index] if split.names else f"row {index}"
