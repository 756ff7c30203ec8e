"""The same few pictures as image folder, Parquet and tar files, and processes that pack or read under limits."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

import trainer.data.fetch
from trainer.data.bucket_files import BucketFiles
from trainer.data.image_folder import ImageFolderSource
from trainer.data.packing import pack
from trainer.data.prepare import prepare
from trainer.data.reader import BatchReader
from trainer.data.source import ImageBlocks, SourceSplit, SourceSplits

SIDE: Final = 8  # px, of what is packed
CLASSES: Final = ("ant", "bee")
COUNTS: Final = {"train": 5, "test": 2}  # pictures a class


def pictures(part: str) -> Iterator[tuple[str, int, bytes]]:
    """Yield the class, number and PNG of each picture, in the order of an image folder."""
    for label, name in enumerate(CLASSES):
        for index in range(COUNTS[part]):
            generator = np.random.default_rng([ord(part[1]), label, index])
            pixels = generator.integers(0, 256, (12, 10, 3), np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "png")
            yield name, index, content.getvalue()


def write_folder(root: Path) -> Path:
    for part in COUNTS:
        for name, index, content in pictures(part):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.png").write_bytes(content)
    return root


def write_parquet(root: Path, *, are_names: bool = False) -> Path:
    """Write two files a split, in small row groups, as the Hugging Face library does."""
    root.mkdir()
    for part in COUNTS:
        rows = [
            {"image": {"bytes": content, "path": None}, "label": name if are_names else CLASSES.index(name)}
            for name, _, content in pictures(part)
        ]
        half = len(rows) // 2 + 1
        for number, some in enumerate((rows[:half], rows[half:])):
            table = pa.Table.from_pylist(some)
            if not are_names:
                noted = {"info": {"features": {"label": {"names": list(CLASSES)}}}}
                table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
            pq.write_table(table, root / f"{part}-{number:05}-of-00002.parquet", row_group_size=2)
    return root


def write_tar(root: Path, *, labelled: int | None = None) -> Path:
    """Write one file a split; only the first `labelled` pictures have a label, or all."""
    for part in COUNTS:
        (root / part).mkdir(parents=True)
        with tarfile.open(root / part / "0.tar", "w") as tar:
            for number, (name, index, content) in enumerate(pictures(part)):
                add(tar, f"{name}/{index}.png", content)
                if labelled is None or number < labelled:
                    add(tar, f"{name}/{index}.cls", name.encode())
    return root


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@dataclass(frozen=True)
class FatalBlocks:
    """Blocks that kill their process, outright, when the last of them is asked for."""

    blocks: ImageBlocks
    ends_at: int

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, rows: slice) -> ImageBlocks:
        part = self.blocks[rows]
        return FatalBlocks(part, 0) if rows.start == self.ends_at else part

    def __call__(self, image_size: int) -> Iterator[NDArray[np.uint8]]:
        yield from self.blocks[0:1](image_size)
        os.kill(os.getpid(), signal.SIGKILL)


class FatalSource(ImageFolderSource):
    """An image folder of which the process does not survive the picture at row 4."""

    def open(self) -> SourceSplits:
        splits = super().open()
        train = splits.train
        fatal = SourceSplit(
            num_images=train.num_images, blocks=FatalBlocks(train.blocks, 4), labels=train.labels, names=train.names
        )
        return SourceSplits(train=fatal, test=splits.test, class_names=splits.class_names)


def pack_until_killed(root: Path, target: str | Path) -> None:
    """Pack with two images a shard, and die within the third."""
    pack(FatalSource(root), target, image_size=SIDE, images_per_shard=2)


def prepare_until_killed(name: str, datasets: str, cache: Path) -> None:
    """Fetch one shard after the other, and die within the third."""
    fetched = BucketFiles.fetch

    def fetch_or_die(self: BucketFiles, file: str, path: Path) -> None:
        if file.endswith("-00002.raw"):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        fetched(self, file, path)

    BucketFiles.fetch = fetch_or_die  # type: ignore[method-assign]
    trainer.data.fetch.NUM_FETCHED = 1  # type: ignore[misc]
    prepare(name, image_size=SIDE, cache_dir=cache, datasets_dir=datasets, validation_ratio=0.3)


def read_within(datasets: Path, name: str, image_size: int, spare_bytes: int) -> dict[str, Any]:
    """Read an epoch in random order while this process may take only so much memory beyond what it has."""
    dataset = prepare(name, image_size=image_size, cache_dir=datasets, datasets_dir=datasets, validation_ratio=0.1)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # private, writable
    resource.setrlimit(resource.RLIMIT_DATA, (held + spare_bytes, held + spare_bytes))
    order = np.random.default_rng(0).permutation(len(dataset.pretrain))
    batches = (order[start : start + 256] for start in range(0, len(order), 256))
    total = sum(int(batch.images.sum()) for batch in BatchReader(dataset.pretrain).read(batches))
    try:
        dataset.pretrain.images  # noqa: B018 - it is computed
    except MemoryError:
        return {"sum": total, "fits": False}
    return {"sum": total, "fits": True}
