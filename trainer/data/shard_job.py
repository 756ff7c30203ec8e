"""The work of one shard, and the record that it leaves where a packing may go on with it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from trainer.data.files import whole_file
from trainer.data.shards import Shard, WrittenShard, read_shard, write_shard
from trainer.data.source import ImageBlocks
from trainer.errors import DataError

__all__ = ["WORK", "DoneShard", "ShardJob", "record_shard"]

WORK: Final = ".packing"  # in the folder, while it is being packed


@dataclass(frozen=True, kw_only=True)
class DoneShard:
    """A shard that is on disk and whole."""

    written: WrittenShard
    is_new: bool  # else it was there already


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The work of one shard; pickles with the part of the source that it needs."""

    folder: Path
    file: str
    images: ImageBlocks
    image_size: int
    leaves_out_unreadable: bool

    def run(self) -> DoneShard:
        """Write the shard unless it is there and whole.

        Raises:
            DataError: At an image that cannot be read, with its name, unless such are left out.
            OSError: If the shard cannot be written.
        """
        if (shard := _recorded(self.folder, self.file)) is not None:
            with suppress(DataError):
                return DoneShard(written=read_shard(self.folder, shard, image_size=self.image_size), is_new=False)
        with whole_file(self.folder / self.file) as path:
            written = write_shard(
                path,
                self.images,
                image_size=self.image_size,
                name=self.file,
                leaves_out_unreadable=self.leaves_out_unreadable,
            )
        record_shard(self.folder, written.shard)
        return DoneShard(written=written, is_new=True)


def _record_path(folder: Path, file: str) -> Path:
    return folder / WORK / f"{file}.json"


def _recorded(folder: Path, file: str) -> Shard | None:
    try:
        return Shard.model_validate_json(_record_path(folder, file).read_bytes())
    except (OSError, ValidationError):
        return None


def record_shard(folder: Path, shard: Shard) -> None:
    """Note that a shard is whole."""
    with whole_file(_record_path(folder, shard.file)) as partial:
        partial.write_text(shard.model_dump_json(), encoding="utf-8")
