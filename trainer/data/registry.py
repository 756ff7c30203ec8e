"""What an operator registered: data sets in a directory, or packed ones in a bucket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from trainer.data.bucket_files import BucketFiles, reached
from trainer.data.files import is_bucket, named_place
from trainer.data.image_folder import ImageFolderSource
from trainer.data.manifest import MANIFEST, Manifest, read_manifest
from trainer.data.npz import NpzSource
from trainer.data.packed import PackedSource, is_packed, packed_info
from trainer.data.source import DatasetInfo, Source
from trainer.errors import DataError
from trainer.storage import S3Storage

__all__ = ["NUM_ASKED", "BucketSource", "Registry", "open_registry"]

NUM_ASKED: Final = 16  # data sets of a bucket that are asked for at a time


class BucketSource:
    """A packed data set in a bucket; a node fetches it before it is opened."""

    def __init__(self, files: BucketFiles) -> None:
        self.files = files

    def manifest(self) -> Manifest:
        """Return its manifest, each shard being there in full size."""
        return read_manifest(self.files)

    def info(self) -> DatasetInfo:
        """Return the catalogue entry, from the manifest and the sizes of the objects."""
        return packed_info(self.files.name, self.manifest())

    def fingerprint(self) -> str:
        """Return the digest of what is packed."""
        return f"packed {self.manifest().digest}"


class Registry(Protocol):
    """The registered data sets. Methods raise StorageUnavailable where a bucket does not answer."""

    def names(self) -> list[str]:
        """Return their names, sorted; not all of them are ids that a spec can name."""

    def source(self, name: str) -> Source | BucketSource | None:
        """Return where one comes from, None if it is not registered. Raises DataError if that is not clear."""


def open_registry(datasets_dir: str | Path | None) -> Registry:
    """Return what is registered in a directory, if there is one, or at `s3://bucket/prefix`.

    Raises:
        DataError: If it is another address.
    """
    if datasets_dir is None:
        return _FolderRegistry(None)
    place = named_place(datasets_dir)
    return _BucketRegistry(place) if is_bucket(place) else _FolderRegistry(Path(place))


class _FolderRegistry:
    """Folders, of image files or packed, and .npz files."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        if self._folder is None or not self._folder.is_dir():
            return []
        entries = [path for path in self._folder.iterdir() if not path.name.startswith(".")]
        folders = {path.name for path in entries if (path / "train").is_dir() or is_packed(path)}
        files = {path.stem for path in entries if path.suffix == ".npz" and path.is_file()}
        return sorted(folders | files)

    def source(self, name: str) -> Source | None:
        if self._folder is None or name not in self.names():
            return None
        folder, file = self._folder / name, self._folder / f"{name}.npz"
        if folder.is_dir() and file.is_file():
            raise DataError(f"{name} is both a folder and {file.name}; remove one", file=file.name)
        if is_packed(folder):
            return PackedSource(folder)
        return ImageFolderSource(folder) if folder.is_dir() else NpzSource(file)


class _BucketRegistry:
    """Packed data sets, each `NAME/manifest.json` and what is beside it; other objects are not looked at."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._storage = S3Storage.at(address)
        self._files: dict[str, BucketFiles] = {}  # as they were listed, once

    def names(self) -> list[str]:
        with reached(self._address):
            folders = self._storage.folders()
        with ThreadPoolExecutor(NUM_ASKED) as pool:
            sources = list(pool.map(self.source, folders))
        return [name for name, source in zip(folders, sources, strict=True) if source is not None]

    def source(self, name: str) -> BucketSource | None:
        if name not in self._files:
            self._files[name] = BucketFiles(f"{self._address}/{name}", self._storage.under(name))
        files = self._files[name]
        return BucketSource(files) if MANIFEST in files.sizes() else None
