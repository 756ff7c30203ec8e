"""Decode a data set once a node, and share it between workers through the page cache.

`{cache}/datasets/{name}-{fingerprint}-{image_size}/` holds plain .npy files and meta.json, written
last. A folder appears whole, by a rename, under a lock that dies with its holder; so any number
of callers may race, and what a killed one left behind is swept by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.catalogue import find_source
from trainer.data.dataset import Dataset, Subset
from trainer.data.source import Source, SourceSplit, SourceSplits
from trainer.data.split import held_out
from trainer.errors import DataError, StorageUnavailable

__all__ = ["Dataset", "prepare"]

FORMAT_VERSION = 1  # of the cache; a change decodes everything again
NUM_NAMED = 3  # examples a warning gives


def prepare(
    name: str, *, image_size: int, cache_dir: Path, datasets_dir: Path | None, validation_ratio: float
) -> Dataset:
    """Return a data set at one image size, decoded now unless the node has it already.

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
    folder = _cached(source, name=name, image_size=image_size, cache_dir=cache_dir)
    meta = _read_meta(folder)
    if meta is None:
        raise DataError(f"the cache of {name} was removed while it was being opened; start again")
    return _open(folder, meta, validation_ratio=validation_ratio)


def _cached(source: Source, *, name: str, image_size: int, cache_dir: Path) -> Path:
    fingerprint = hashlib.sha256(f"{FORMAT_VERSION}\n{_pillow_version()}\n{source.fingerprint()}".encode()).hexdigest()
    root = cache_dir / "datasets"
    folder = root / f"{name}-{fingerprint[:16]}-{image_size}"
    if _read_meta(folder) is not None:
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{folder.name}.lock"):
            if _read_meta(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)  # damaged
                with _appearing_whole(folder) as partial:
                    _decode(source.open(), partial, image_size=image_size, name=name)
    except OSError as error:
        raise StorageUnavailable(f"the node's cache of decoded images cannot be written: {error.strerror}") from error
    return folder


def _pillow_version() -> str:
    from PIL import __version__

    return f"pillow {__version__}"  # decoders and filters may change with it


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


def _decode(splits: SourceSplits, folder: Path, *, image_size: int, name: str) -> None:
    digest = hashlib.sha256(json.dumps([image_size, splits.class_names]).encode())
    rows = {
        part: _write_split(split, folder, part=part, image_size=image_size, digest=digest)
        for part, split in (("train", splits.train), ("test", splits.test))
        if split is not None
    }
    meta = {
        "version": FORMAT_VERSION,
        "name": name,
        "image_size": image_size,
        "class_names": splits.class_names,
        "num_test": splits.test.num_images if splits.test else 0,
        "digest": digest.hexdigest(),
        "warnings": [*splits.warnings, *_duplicate_warnings(splits, rows)],
        "sizes_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _write_split(split: SourceSplit, folder: Path, *, part: str, image_size: int, digest: hashlib._Hash) -> list[bytes]:
    """Write one split's arrays and return a digest of each image."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (split.num_images, image_size, image_size, 3)}
    rows: list[bytes] = []
    with (folder / f"{part}_images.npy").open("wb") as file:  # not mapped: a full disk is an error then, no signal
        np.lib.format.write_array_header_1_0(file, header)
        for block in split.blocks(image_size):
            file.write(block.tobytes())
            rows += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in block]
    for row in rows:
        digest.update(row)
    for field, values in (("labels", split.labels), ("groups", split.groups)):
        if values is not None:
            np.save(folder / f"{part}_{field}.npy", values)
            digest.update(f"{part} {field}".encode() + values.tobytes())
    return rows


def _duplicate_warnings(splits: SourceSplits, rows: dict[str, list[bytes]]) -> list[str]:
    train = {row: index for index, row in enumerate(rows["train"])}
    shared = [(train[row], index) for index, row in enumerate(rows.get("test", ())) if row in train]
    if not shared or splits.test is None:
        return []
    pairs = [f"{_shown(splits.test, test)} = {_shown(splits.train, index)}" for index, test in shared[:NUM_NAMED]]
    return [f"{len(shared)} test images are also in the training set: {', '.join(pairs)}"]


def _shown(split: SourceSplit, index: int) -> str:
    return split.names[index] if split.names else f"row {index}"


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """Return the record of a cached data set, or None if it is absent or its files are not whole."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
        is_whole = all((folder / name).stat().st_size == size for name, size in meta["sizes_bytes"].items())
    except (OSError, ValueError, KeyError):
        return None
    return meta if is_whole else None


def _open(folder: Path, meta: dict[str, Any], *, validation_ratio: float) -> Dataset:
    images = _mapped(folder / "train_images.npy")
    labels, groups = (_loaded(folder / f"train_{field}.npy") for field in ("labels", "groups"))
    is_validation = held_out(
        num_images=len(images),
        labels=labels,
        groups=groups,
        ratio=validation_ratio,
        key=f"validation split {meta['digest']}",
    )

    def subset(rows: NDArray[np.int64]) -> Subset:
        return Subset(array=images, sample_ids=rows, labels=None if labels is None else labels[rows])

    def read_test() -> Subset:
        test_images = _mapped(folder / "test_images.npy")
        rows = np.arange(len(test_images))
        return Subset(array=test_images, sample_ids=rows, labels=_loaded(folder / "test_labels.npy"))

    class_names = meta["class_names"]
    return Dataset(
        name=meta["name"],
        image_size=meta["image_size"],
        digest=meta["digest"],
        class_names=tuple(class_names) if class_names is not None else None,
        pretrain=subset(np.flatnonzero(~is_validation)),
        validation=subset(np.flatnonzero(is_validation)),
        num_test=meta["num_test"],
        warnings=tuple(meta["warnings"]),
        _test=read_test,
    )


def _mapped(path: Path) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return images.view(np.ndarray)


def _loaded(path: Path) -> NDArray[np.int64] | None:
    if not path.exists():
        return None
    values: NDArray[np.int64] = np.load(path, allow_pickle=False)
    return values
