"""The catalogue: which data sets can be named in a spec. Imports no torch; cheap to ask.

Embedded ones come with the packages or lie where a distribution or torchvision puts them; an
operator registers more (`registry.py`) by putting folders, of image files or packed, and .npz files
into one directory, or packed ones into a bucket. Embedded names are reserved: an operator's data set
of that name is not reachable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.data.digits import DigitsSource
from trainer.data.files import is_bucket
from trainer.data.idx import FashionMnistSource
from trainer.data.openmoji import OpenMojiSource
from trainer.data.registry import NUM_ASKED, BucketSource, Registry, open_registry
from trainer.data.source import DatasetInfo, Source
from trainer.data.torchvision_folders import CIFAR10, CIFAR100, CifarSource, Stl10Source
from trainer.errors import DataError, StorageUnavailable

__all__ = ["NAME_RULE", "DatasetInfo", "describe", "find_source", "is_name", "list_datasets"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # what a spec can name
NAME_RULE = "an id is lower-case letters, digits, '.', '_', '-', at most 64"

EMBEDDED: dict[str, Callable[[Path | None], Source]] = {
    "openmoji": lambda _: OpenMojiSource(),
    "digits": lambda _: DigitsSource(),
    "fashion-mnist": FashionMnistSource.under,
    "cifar10": lambda datasets_dir: CifarSource(CIFAR10, datasets_dir),
    "cifar100": lambda datasets_dir: CifarSource(CIFAR100, datasets_dir),
    "stl10": Stl10Source,
}


def is_name(word: str) -> bool:
    """Return whether a spec can name a data set so."""
    return NAME.fullmatch(word) is not None


def list_datasets(datasets_dir: str | Path | None) -> list[DatasetInfo]:
    """Return every data set, embedded ones first; what cannot be used says why in `problem`.

    Args:
        datasets_dir: The operator's directory or `s3://bucket/prefix`, if there is one.

    Raises:
        StorageUnavailable: If the bucket does not answer.
    """
    registry = open_registry(datasets_dir)
    names = [*EMBEDDED, *_operator_names(registry)]
    with ThreadPoolExecutor(NUM_ASKED) as pool:
        return list(pool.map(lambda name: _info_or_problem(name, datasets_dir, registry), names))


def describe(name: str, datasets_dir: str | Path | None) -> DatasetInfo:
    """Return the entry of one data set.

    Raises:
        DataError: If the id is unknown (lists the known ones), or the data is broken (names file or field).
        StorageUnavailable: If it is looked for in a bucket that does not answer.
    """
    return find_source(name, datasets_dir).info()


def find_source(name: str, datasets_dir: str | Path | None) -> Source | BucketSource:
    """Return where a data set comes from.

    Raises:
        DataError: If the id is unknown; the message lists the known ones.
        StorageUnavailable: If it is looked for in a bucket that does not answer.
    """
    return _find(name, datasets_dir, open_registry(datasets_dir))


def _find(name: str, datasets_dir: str | Path | None, registry: Registry) -> Source | BucketSource:
    if name in EMBEDDED:
        return EMBEDDED[name](None if datasets_dir is None or is_bucket(datasets_dir) else Path(datasets_dir))
    source = registry.source(name) if is_name(name) else None
    if source is None:
        known = [*EMBEDDED, *_operator_names(registry)]
        why = _why_no_others(datasets_dir)
        raise DataError(f"there is no data set {name!r}; known are {', '.join(known)}{why}", allowed=known)
    return source


def _why_no_others(datasets_dir: str | Path | None) -> str:
    """Return what an operator may have overlooked, to follow the known names."""
    if datasets_dir is None:
        return "; SIMCLR_DATASETS is not set"
    if is_bucket(datasets_dir) or Path(datasets_dir).is_dir():
        return ""
    return f"; SIMCLR_DATASETS={datasets_dir} is no folder"


def _operator_names(registry: Registry) -> list[str]:
    return [name for name in registry.names() if name not in EMBEDDED]


def _info_or_problem(name: str, datasets_dir: str | Path | None, registry: Registry) -> DatasetInfo:
    try:
        if name not in EMBEDDED and not is_name(name):
            raise DataError(f"rename it: {NAME_RULE}")  # noqa: TRY301 - told as any other problem
        return _find(name, datasets_dir, registry).info()
    except (DataError, StorageUnavailable) as error:
        if isinstance(error, StorageUnavailable) and datasets_dir is not None and is_bucket(datasets_dir):
            raise  # away as a whole, and each of its data sets would be waited for
        return DatasetInfo(
            name=name,
            description="Registered by the operator, and cannot be used",
            num_train=0,
            num_test=0,
            num_classes=None,
            channels=3,
            native_image_size=None,
            has_labels=False,
            licence="unknown",
            source="operator",
            problem=error.message,
        )
