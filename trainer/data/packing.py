"""Pack a data set: cut it into shards, write them in parallel, and go on where an earlier packing ended.

While it is being packed, `.packing/` beside the shards holds the plan, a record of each shard that is
whole, and in a folder a lock. Every shard appears whole, then its record, and the manifest last of
all: what was killed at any moment is no data set yet, and what it has is not written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.data.image_folder import ImageFolderSource
from trainer.data.manifest import Manifest, Plan, seal
from trainer.data.npz import NpzSource
from trainer.data.packed import PackedSource, is_packed
from trainer.data.packed_files import PackedFiles, files_at
from trainer.data.packing_place import packing_place
from trainer.data.parquet import SUFFIX as PARQUET
from trainer.data.parquet import ParquetSource
from trainer.data.shard_job import DoneShard, ShardJob
from trainer.data.shards import image_bytes
from trainer.data.source import SourceSplits, Stored
from trainer.data.web_dataset import SUFFIX as TAR
from trainer.data.web_dataset import WebDatasetSource
from trainer.errors import DataError

__all__ = ["Packing", "Progress", "pack", "source_at"]

SHARD_BYTES: Final = 64 * 2**20  # a task of seconds, and what a killed one loses
MAX_SHARDS: Final = 256  # a split: each takes a file descriptor wherever it is mapped


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a packing is."""

    num_shards: int
    num_images: int
    num_shards_in_all: int
    num_images_in_all: int


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What a packing came to."""

    manifest: Manifest
    num_written: int  # shards
    num_kept: int  # shards that were there and whole


OnShard = Callable[[Progress], None]


def pack(
    source: Stored,
    target: str | Path,
    *,
    image_size: int,
    num_workers: int = 1,
    images_per_shard: int | None = None,
    leaves_out_unreadable: bool = False,
    resumes: bool = False,
    on_shard: OnShard | None = None,
) -> Packing:
    """Write a packed data set and return its manifest.

    Args:
        source: What to pack.
        target: Where to, a folder or `s3://bucket/prefix/NAME`; has to be new or empty, unless `resumes`.
        image_size: Pixels a side, as `data.image_size` of the specs that will use it.
        num_workers: 1: in this process; more: so many tasks of Ray Data at a time, on the Ray at
            RAY_ADDRESS or else one that is started for it. Each needs source and target under these
            names, and for a bucket the AWS settings.
        images_per_shard: None: about SHARD_BYTES, or more where that were over MAX_SHARDS shards.
        leaves_out_unreadable: Leave out images that cannot be read, and say so in the manifest.
        resumes: Go on with a packing that was ended, or mend one that was damaged since.
        on_shard: Told after each shard how far it is.

    Raises:
        DataError: If the source is broken, or the target is not what it should be; says what to do.
        StorageUnavailable: If the target is in a bucket that does not answer.
        OSError: If something cannot be written.
    """
    files = files_at(target)
    splits = source.open()
    plan = Plan.of(
        source,
        image_size=image_size,
        images_per_shard=_images_per_shard(splits, image_size, images_per_shard),
        leaves_out_unreadable=leaves_out_unreadable,
    )
    with packing_place(files, plan, resumes=resumes):
        jobs = _jobs(splits, files, plan)
        done: list[DoneShard | None] = [None] * len(jobs)
        for index, shard in _run(jobs, num_workers=num_workers):
            done[index] = shard
            if on_shard is not None:
                on_shard(_progress(done, splits))
        shards = {job.file: shard for job, shard in zip(jobs, done, strict=True) if shard is not None}
        train, test = (
            [shard.written for file, shard in shards.items() if file.startswith(part)] for part in ("train", "test")
        )
        manifest = seal(files, splits, plan, train=train, test=test)
    num_written = sum(shard.is_new for shard in shards.values())
    return Packing(manifest=manifest, num_written=num_written, num_kept=len(shards) - num_written)


def source_at(path: Path, *, image_column: str = "image", label_column: str = "label") -> Stored:
    """Return what can be packed at a path: image folder, Parquet or tar files, array file, packed data set.

    Raises:
        DataError: If there is nothing.
    """
    if path.is_file():
        return NpzSource(path)
    if not path.is_dir():
        raise DataError(f"{path} is not there")
    if is_packed(path):
        return PackedSource(path)
    near = [entry for folder in (path, path / "train") if folder.is_dir() for entry in folder.iterdir()]
    suffixes = {entry.suffix for entry in near if entry.is_file()}
    if PARQUET in suffixes:
        return ParquetSource(path, image_column=image_column, label_column=label_column)
    return WebDatasetSource(path) if TAR in suffixes else ImageFolderSource(path)


# --- pieces ---------------------------------------------------------------------------------------


def _images_per_shard(splits: SourceSplits, image_size: int, wanted: int | None) -> int:
    most = max(splits.train.num_images, splits.test.num_images if splits.test else 0)
    least = -(-most // MAX_SHARDS)
    if wanted is not None and wanted < least:
        raise DataError(f"{wanted} images a shard are more than {MAX_SHARDS} shards; put {least} or more into each")
    return wanted or max(1, SHARD_BYTES // image_bytes(image_size), least)


def _jobs(splits: SourceSplits, files: PackedFiles, plan: Plan) -> list[ShardJob]:
    return [
        ShardJob(
            files=files,
            file=f"{part}-{start // plan.images_per_shard:05}.raw",
            images=split.blocks[start : start + plan.images_per_shard],
            image_size=plan.image_size,
            leaves_out_unreadable=plan.leaves_out_unreadable,
        )
        for part, split in (("train", splits.train), ("test", splits.test))
        if split is not None
        for start in range(0, split.num_images, plan.images_per_shard)
    ]


def _run(jobs: Sequence[ShardJob], *, num_workers: int) -> Iterator[tuple[int, DoneShard]]:
    num_workers = min(num_workers, len(jobs))
    if num_workers == 1:
        return ((index, job.run()) for index, job in enumerate(jobs))
    from trainer.data.ray_packing import run_on_ray  # Ray takes seconds to load

    return run_on_ray(jobs, num_workers=num_workers)


def _progress(done: Sequence[DoneShard | None], splits: SourceSplits) -> Progress:
    shards = [shard.written.shard for shard in done if shard is not None]
    return Progress(
        num_shards=len(shards),
        num_images=sum(shard.num_images + len(shard.left_out) for shard in shards),
        num_shards_in_all=len(done),
        num_images_in_all=splits.train.num_images + (splits.test.num_images if splits.test else 0),
    )
