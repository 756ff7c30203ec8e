"""Tar files in the WebDataset form: members `KEY.png` or the like, and `KEY.cls` with the label.

`train*.tar` or files under `train/`, and the same for `test`, in the order of their names, images in
the order of the file. Only headers and labels are read beforehand; nothing is ever unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import file_facts, part_files, raise_if_passing
from trainer.data.image_folder import SUFFIXES
from trainer.data.labels import numbered_labels
from trainer.data.pixels import decoded_blocks
from trainer.data.source import SourceSplit, SourceSplits, part_splits
from trainer.errors import DataError

__all__ = ["SUFFIX", "WebDatasetSource"]

SUFFIX: Final = ".tar"
LABEL_SUFFIX: Final = ".cls"
MAX_LABEL_BYTES: Final = 1000


@dataclass(frozen=True, slots=True)
class Member:
    """Where the content of an image lies."""

    file: str
    name: str
    offset: int
    size_bytes: int


@dataclass
class Part:
    """What the tar files of a split hold."""

    members: list[Member] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)  # aligned


class WebDatasetSource:
    """The tar files under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def fingerprint(self) -> str:
        """Return names, sizes and times of the files."""
        files = part_files(self._root, suffix=SUFFIX)
        return file_facts(self._root, (*files["train"], *files["test"]))

    def open(self) -> SourceSplits:
        """Return the splits, from headers and labels; images are read as blocks are asked for."""
        files = part_files(self._root, suffix=SUFFIX)
        parts = {part: self._part(files[part]) for part in ("train", "test") if files[part] or part == "train"}
        class_names, labels = numbered_labels(
            {name: self._labels(part) for name, part in parts.items()}, class_names=None, where=self._root.name
        )
        splits = {
            name: SourceSplit(
                num_images=len(part.members),
                blocks=TarBlocks(self._root, tuple(part.members)),
                labels=labels.get(name),
            )
            for name, part in parts.items()
        }
        return part_splits(splits, class_names=class_names, others=files[""], where=self._root.name)

    def _part(self, files: tuple[str, ...]) -> Part:
        part = Part()
        for file in files:
            try:
                members, labels = _headers(self._root, file)
            except (tarfile.TarError, OSError, EOFError) as error:
                raise_if_passing(error, name=f"{self._root.name}/{file}")
                raise DataError(
                    f"{self._root.name}/{file} is no whole, uncompressed tar file: {error}", file=file
                ) from error
            part.members += members
            part.labels += [labels.get(_key(member.name)) for member in members]
        return part

    def _labels(self, part: Part) -> list[int] | list[str] | None:
        labels = [label for label in part.labels if label is not None]
        if not labels:
            return None
        if len(labels) < len(part.labels):
            bare = part.members[part.labels.index(None)]
            raise DataError(
                f"{self._root.name}/{bare.file}: {bare.name} has no {LABEL_SUFFIX} and others have", file=bare.file
            )
        return [int(label) for label in labels] if all(label.isdecimal() for label in labels) else labels


@dataclass(frozen=True)
class TarBlocks:
    """Images in tar files, decoded as they are asked for."""

    root: Path
    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, rows: slice) -> TarBlocks:
        """Return some of them."""
        return TarBlocks(self.root, self.members[rows])

    def __call__(self, image_size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all of them."""
        return decoded_blocks(map(self._image, self.members), image_size=image_size)

    def _image(self, member: Member) -> tuple[str, BytesIO]:
        with (self.root / member.file).open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size_bytes)
        return f"{self.root.name}/{member.file}: {member.name}", BytesIO(content)


def _headers(root: Path, file: str) -> tuple[list[Member], dict[str, str]]:
    """Return the images of a tar file, and key -> label."""
    members: list[Member] = []
    labels: dict[str, str] = {}
    with tarfile.open(root / file, "r:") as tar:
        for member in tar:
            suffix = _suffix(member.name)
            if not member.isreg():
                continue
            if suffix in SUFFIXES:
                members.append(Member(file, member.name, member.offset_data, member.size))
            elif suffix == LABEL_SUFFIX and (content := tar.extractfile(member)) is not None:
                labels[_key(member.name)] = content.read(MAX_LABEL_BYTES).decode(errors="replace").strip()
    return members, labels


def _key(name: str) -> str:
    """Return what the members of one sample share: the path up to the first dot of its last part."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _suffix(name: str) -> str:
    _, dot, rest = PurePosixPath(name).name.partition(".")
    return f"{dot}{rest}".lower()
