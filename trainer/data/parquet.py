"""Parquet files with an encoded image and, if there is one, a label a row, as data set hubs hand them out.

`train*.parquet` or files under `train/`, and the same for `test`, in the order of their names. An
image is its file's bytes, or a struct with a member `bytes`. Class names are taken from what the
Hugging Face library notes in the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import file_facts, part_files, raise_if_passing
from trainer.data.labels import numbered_labels
from trainer.data.pixels import decoded_blocks
from trainer.data.source import BLOCK_SIZE, SourceSplit, SourceSplits, part_splits
from trainer.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["SUFFIX", "ParquetSource"]

SUFFIX: Final = ".parquet"


@dataclass(frozen=True)
class Rows:
    """Some consecutive rows of a file."""

    file: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class ParquetSource:
    """The Parquet files under one folder."""

    def __init__(self, root: Path, *, image_column: str = "image", label_column: str = "label") -> None:
        self._root = root
        self._image_column = image_column
        self._label_column = label_column

    def fingerprint(self) -> str:
        """Return names, sizes and times of the files, and the columns."""
        files = part_files(self._root, suffix=SUFFIX)
        facts = file_facts(self._root, (*files["train"], *files["test"]))
        return f"{facts}\n{self._image_column}\n{self._label_column}"

    def open(self) -> SourceSplits:
        """Return the splits, from footers and labels; images are read as blocks are asked for."""
        files = part_files(self._root, suffix=SUFFIX)
        parts = {part: files[part] for part in ("train", "test") if files[part] or part == "train"}
        tables = {name: _opened(self._root, name) for names in parts.values() for name in names}
        for name, table in tables.items():
            self._require_images(name, table)
        class_names, labels = numbered_labels(
            {part: self._labels(names, tables) for part, names in parts.items()},
            class_names=_noted_names(next(iter(tables.values())), self._label_column) if tables else None,
            where=self._root.name,
        )
        splits = {
            part: self._split([Rows(name, 0, tables[name].metadata.num_rows) for name in names], labels.get(part))
            for part, names in parts.items()
        }
        return part_splits(splits, class_names=class_names, others=files[""], where=self._root.name)

    def _split(self, rows: Sequence[Rows], labels: NDArray[np.int64] | None) -> SourceSplit:
        blocks = ParquetBlocks(self._root, tuple(rows), self._image_column)
        return SourceSplit(num_images=len(blocks), blocks=blocks, labels=labels)

    def _require_images(self, name: str, table: pq.ParquetFile) -> None:
        columns = table.schema_arrow.names
        if self._image_column not in columns:
            raise DataError(
                f"{self._root.name}/{name} has no column {self._image_column!r}; it has {', '.join(columns)}: "
                "name one by --image-column",
                file=name,
            )

    def _labels(self, names: Sequence[str], tables: dict[str, pq.ParquetFile]) -> list[Any] | None:
        column = self._label_column
        having = [name for name in names if column in tables[name].schema_arrow.names]
        if not having:
            return None
        if lacking := [name for name in names if name not in having]:
            raise DataError(f"{self._root.name}/{lacking[0]} has no column {column!r} and others have", file=lacking[0])
        labels: list[Any] = []
        for name in names:
            stored = tables[name].read([column]).column(column)
            if stored.null_count:
                raise DataError(f"{self._root.name}/{name}: {stored.null_count} rows have no {column}", file=name)
            labels += stored.to_pylist()
        if strange := next((label for label in labels if not isinstance(label, int | str)), None):
            raise DataError(f"{self._root.name}: column {column!r} holds {strange!r}, neither a number nor a name")
        return labels


@dataclass(frozen=True)
class ParquetBlocks:
    """Images in rows of Parquet files, decoded as they are asked for."""

    root: Path
    rows: tuple[Rows, ...]
    column: str

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def __getitem__(self, wanted: slice) -> ParquetBlocks:
        """Return some of them."""
        first, last, _ = wanted.indices(len(self))
        parts, before = [], 0
        for rows in self.rows:
            start, stop = max(first - before, 0), min(last - before, len(rows))
            if start < stop:
                parts.append(Rows(rows.file, rows.start + start, rows.start + stop))
            before += len(rows)
        return ParquetBlocks(self.root, tuple(parts), self.column)

    def __call__(self, image_size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all of them."""
        images = (image for rows in self.rows for image in self._images(rows))
        return decoded_blocks(images, image_size=image_size)

    def _images(self, rows: Rows) -> Iterator[tuple[str, BytesIO]]:
        for row, value in zip(range(rows.start, rows.stop), self._values(rows), strict=True):
            name = f"{self.root.name}/{rows.file} row {row}"
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise DataError(f"{name} holds no bytes of an image in column {self.column!r}", file=rows.file, row=row)
            yield name, BytesIO(content)

    def _values(self, rows: Rows) -> Iterator[Any]:
        """Yield what the column holds in these rows, of the row groups they lie in and no others."""
        table = _opened(self.root, rows.file)
        groups: list[int] = []
        before = first = 0
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if before < rows.stop and before + size > rows.start:
                first = first if groups else before
                groups.append(group)
            before += size
        row = first
        for batch in table.iter_batches(batch_size=BLOCK_SIZE, row_groups=groups, columns=[self.column]):
            wanted = _within(batch.column(0), rows.start - row, rows.stop - row)
            yield from wanted.to_pylist()
            row += len(batch)


def _within(values: pa.Array, start: int, stop: int) -> pa.Array:
    start, stop = max(start, 0), min(stop, len(values))
    return values.slice(start, max(stop - start, 0))


def _opened(root: Path, name: str) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(root / name)
    except (pa.ArrowException, OSError) as error:
        raise_if_passing(error, name=f"{root.name}/{name}")
        raise DataError(f"{root.name}/{name} is no Parquet file: {error}", file=name) from error


def _noted_names(table: pq.ParquetFile, column: str) -> list[str] | None:
    """Return the names of the classes as the Hugging Face library notes them, if it has."""
    noted = (table.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(noted or b"{}")["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None
