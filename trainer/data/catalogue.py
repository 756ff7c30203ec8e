"""The catalogue: which data sets can be named in a spec. Imports no torch; cheap to ask.

Embedded ones come with the packages or lie where a distribution or torchvision puts them; an
operator registers more by putting folders, of image files or packed, and .npz files into one
directory. Embedded names are reserved: an operator's data set of that name is not reachable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from trainer.data.digits import DigitsSource
from trainer.data.idx import FashionMnistSource
from trainer.data.image_folder import ImageFolderSource
from trainer.data.npz import NpzSource
from trainer.data.openmoji import OpenMojiSource
from trainer.data.packed import PackedSource, is_packed
from trainer.data.source import DatasetInfo, Source
from trainer.data.torchvision_folders import CIFAR10, CIFAR100, CifarSource, Stl10Source
from trainer.errors import DataError

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


def list_datasets(datasets_dir: Path | None) -> list[DatasetInfo]:
    """Return every data set, embedded ones first; what cannot be used says why in `problem`."""
    embedded = [_info_or_problem(name, datasets_dir) for name in EMBEDDED]
    return embedded + [_info_or_problem(name, datasets_dir) for name in _operator_names(datasets_dir)]


def describe(name: str, datasets_dir: Path | None) -> DatasetInfo:
    """Return the entry of one data set.

    Raises:
        DataError: If the id is unknown (lists the known ones), or the data is broken (names file or field).
    """
    return find_source(name, datasets_dir).info()


def find_source(name: str, datasets_dir: Path | None) -> Source:
    """Return where a data set comes from.

    Raises:
        DataError: If the id is unknown; the message lists the known ones.
    """
    if name in EMBEDDED:
        return EMBEDDED[name](datasets_dir)
    known = [*EMBEDDED, *_operator_names(datasets_dir)]
    if datasets_dir is None or name not in known or not is_name(name):
        raise DataError(f"there is no data set {name!r}; known are {', '.join(known)}", allowed=known)
    folder, file = datasets_dir / name, datasets_dir / f"{name}.npz"
    if folder.is_dir() and file.is_file():
        raise DataError(f"{name} is both a folder and {file.name}; remove one", file=file.name)
    if is_packed(folder):
        return PackedSource(folder)
    return ImageFolderSource(folder) if folder.is_dir() else NpzSource(file)


def _operator_names(datasets_dir: Path | None) -> list[str]:
    if datasets_dir is None or not datasets_dir.is_dir():
        return []
    entries = [path for path in datasets_dir.iterdir() if not path.name.startswith(".")]
    folders = {path.name for path in entries if (path / "train").is_dir() or is_packed(path)}
    files = {path.stem for path in entries if path.suffix == ".npz" and path.is_file()}
    return sorted((folders | files) - EMBEDDED.keys())


def _info_or_problem(name: str, datasets_dir: Path | None) -> DatasetInfo:
    try:
        if name not in EMBEDDED and not is_name(name):
            raise DataError(f"rename it: {NAME_RULE}")  # noqa: TRY301 - told as any other problem
        return describe(name, datasets_dir)
    except DataError as error:
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
