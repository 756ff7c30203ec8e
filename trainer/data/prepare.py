"""Make a data set ready to train on: packed ones as they are, from a bucket fetched once a node, all others decoded.

What is decoded is a packed data set of one shard a split, in `{cache}/datasets/{name}-{fingerprint}-{image_size}/`,
what is fetched one as it was packed, in `{cache}/datasets/{name}-{digest}-packed/`; both are shared
between workers through the page cache. A folder appears whole, by a rename, under a lock that dies
with its holder; so any number of callers may race. What a killed one decoded is swept by the next,
what it fetched is gone on with.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.data.catalogue import find_source
from trainer.data.dataset import Dataset
from trainer.data.fetch import fetch
from trainer.data.manifest import Manifest, Plan, read_manifest, seal
from trainer.data.packed import PackedSource, open_packed
from trainer.data.packed_files import FolderFiles
from trainer.data.registry import BucketSource
from trainer.data.shards import write_shard
from trainer.data.source import Source
from trainer.errors import DataError, StorageUnavailable

__all__ = ["Dataset", "prepare"]

FORMAT_VERSION: Final = 2  # of the cache; a change decodes everything again


def prepare(
    name: str, *, image_size: int, cache_dir: Path, datasets_dir: str | Path | None, validation_ratio: float
) -> Dataset:
    """Return a data set at one image size, fetched and decoded now as far as it has to be and the node has not.

    The validation split is stratified and depends on the digest and `validation_ratio` alone; a
    smaller ratio gives a subset of a larger one.

    Args:
        name: An id of the catalogue.
        image_size: Pixels a side.
        cache_dir: Node-local folder; may be removed at any time between runs.
        datasets_dir: The operator's directory or `s3://bucket/prefix`, if there is one.
        validation_ratio: Share 0..1 of the training images that is never trained on.

    Raises:
        DataError: If the data set is unknown, absent or broken; names the file or field.
        StorageUnavailable: If the data set cannot be read at present, its bucket does not answer, or the
            cache cannot be written.
    """
    source = find_source(name, datasets_dir)
    if isinstance(source, BucketSource):
        source = PackedSource(_fetched(source, cache_dir=cache_dir))
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
    folder = cache_dir / "datasets" / f"{name}-{fingerprint[:16]}-{image_size}"

    def decode() -> None:
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        with _appearing_whole(folder) as partial:
            _decode(source, partial, plan)

    _make_once(folder, decode)
    return folder


def _fetched(source: BucketSource, *, cache_dir: Path) -> Path:
    """Return the folder of this node to which a packed data set is copied."""
    manifest = source.manifest()
    folder = cache_dir / "datasets" / f"{source.files.name}-{manifest.digest[:16]}-packed"

    def go_on() -> None:
        partial = folder.with_name(f".{folder.name}.partial")
        if folder.exists() and not partial.exists():
            folder.rename(partial)  # damaged: what is whole in it stays
        partial.mkdir(exist_ok=True)
        fetch(source.files, manifest, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    _make_once(folder, go_on)
    return folder


def _make_once(folder: Path, make: Callable[[], None]) -> None:
    """Call `make` unless the folder is a whole packed data set, one caller at a time."""
    if _whole(folder) is not None:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if _whole(folder) is None:
                make()
    except OSError as error:
        raise StorageUnavailable(f"the node's cache of data sets cannot be written: {error.strerror}") from error


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
    try:
        splits = source.open()
    except OSError as error:
        raise StorageUnavailable(f"the data set cannot be read at present: {error}") from error
    train, *test = (
        write_shard(folder / f"{part}-00000.raw", split.blocks, image_size=plan.image_size)
        for part, split in (("train", splits.train), ("test", splits.test))
        if split is not None
    )
    seal(FolderFiles(folder), splits, plan, train=[train], test=test)


def _whole(folder: Path) -> Manifest | None:
    """Return the manifest of a data set in the cache, or None if it is absent or its files are not whole."""
    try:
        return read_manifest(FolderFiles(folder))
    except (DataError, StorageUnavailable):
        return None
