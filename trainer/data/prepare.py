"""Make a data set ready to train on: packed ones where they lie, all others decoded once a node.

What is decoded is a packed data set of one shard a split, in `{cache}/datasets/{name}-{fingerprint}-{image_size}/`,
shared between workers through the page cache. A folder appears whole, by a rename, under a lock that
dies with its holder; so any number of callers may race, and what a killed one left behind is swept
by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.data.catalogue import find_source
from trainer.data.dataset import Dataset
from trainer.data.manifest import Manifest, Plan, read_manifest, seal
from trainer.data.packed import PackedSource, open_packed
from trainer.data.shards import write_shard
from trainer.data.source import Source
from trainer.errors import DataError, StorageUnavailable

__all__ = ["Dataset", "prepare"]

FORMAT_VERSION: Final = 2  # of the cache; a change decodes everything again


def prepare(
    name: str, *, image_size: int, cache_dir: Path, datasets_dir: Path | None, validation_ratio: float
) -> Dataset:
    """Return a data set at one image size, decoded now unless it is packed or the node has it already.

    The validation split is stratified and depends on the digest and `validation_ratio` alone; a
    smaller ratio gives a subset of a larger one.

    Args:
        name: An id of the catalogue.
        image_size: Pixels a side.
        cache_dir: Node-local folder; may be removed at any time between runs.
        datasets_dir: The operator's data sets, if there are any.
        validation_ratio: Share 0..1 of the training images that is never trained on.

    Raises:
        DataError: If the data set is unknown, absent or broken; names the file or field.
        StorageUnavailable: If the cache cannot be written.
    """
    source = find_source(name, datasets_dir)
    if isinstance(source, PackedSource) and (packed := source.manifest()).image_size == image_size:
        return open_packed(source.folder, packed, name=name, validation_ratio=validation_ratio)
    folder = _cached(source, name=name, image_size=image_size, cache_dir=cache_dir)
    manifest = _whole(folder)
    if manifest is None:
        raise DataError(f"the cache of {name} was removed while it was being opened; start again")
    return open_packed(folder, manifest, name=name, validation_ratio=validation_ratio)


def _cached(source: Source, *, name: str, image_size: int, cache_dir: Path) -> Path:
    plan = Plan.of(source, image_size=image_size, images_per_shard=2**40)
    fingerprint = hashlib.sha256(f"{FORMAT_VERSION}\n{plan.decoder}\n{plan.fingerprint}".encode()).hexdigest()
    root = cache_dir / "datasets"
    folder = root / f"{name}-{fingerprint[:16]}-{image_size}"
    if _whole(folder) is not None:
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{folder.name}.lock"):
            if _whole(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)  # damaged
                with _appearing_whole(folder) as partial:
                    _decode(source, partial, plan)
    except OSError as error:
        raise StorageUnavailable(f"the node's cache of decoded images cannot be written: {error.strerror}") from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends, however it ends
        yield


@contextmanager
def _appearing_whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` at the end, or vanishes on an error."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a caller that was killed
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(source: Source, folder: Path, plan: Plan) -> None:
    splits = source.open()
    train, *test = (
        write_shard(folder / f"{part}-00000.raw", split.blocks, image_size=plan.image_size)
        for part, split in (("train", splits.train), ("test", splits.test))
        if split is not None
    )
    seal(folder, splits, plan, train=[train], test=test)


def _whole(folder: Path) -> Manifest | None:
    """Return the manifest of a decoded data set, or None if it is absent or its files are not whole."""
    try:
        return read_manifest(folder)
    except DataError:
        return None
