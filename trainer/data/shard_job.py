"""The work of one shard, and the record that it leaves where a packing may go on with it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from trainer.data.files import WORK
from trainer.data.packed_files import PackedFiles
from trainer.data.shards import Shard, WrittenShard, read_shard, write_shard
from trainer.data.source import ImageBlocks
from trainer.errors import DataError

__all__ = ["DoneShard", "ShardJob", "record_shard"]


@dataclass(frozen=True, kw_only=True)
class DoneShard:
    """A shard that is where it belongs, whole."""

    written: WrittenShard
    is_new: bool  # else it was there already


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The work of one shard; pickles with the part of the source that it needs."""

    files: PackedFiles
    file: str
    images: ImageBlocks
    image_size: int
    leaves_out_unreadable: bool

    def run(self) -> DoneShard:
        """Write the shard unless it is there and whole.

        Raises:
            DataError: At an image that cannot be read, with its name, unless such are left out.
            OSError: If the shard cannot be written.
            StorageUnavailable: If the bucket does not answer.
        """
        if (shard := _recorded(self.files, self.file)) is not None:
            with suppress(DataError):
                return DoneShard(written=read_shard(self.files, shard, image_size=self.image_size), is_new=False)
        with self.files.writing(self.file) as path:
            written = write_shard(
                path,
                self.images,
                image_size=self.image_size,
                name=self.file,
                leaves_out_unreadable=self.leaves_out_unreadable,
            )
        record_shard(self.files, written.shard)
        return DoneShard(written=written, is_new=True)


def _record(file: str) -> str:
    return f"{WORK}/{file}.json"


def _recorded(files: PackedFiles, file: str) -> Shard | None:
    try:
        return Shard.model_validate_json(files.read(_record(file)))
    except (OSError, ValidationError):
        return None


def record_shard(files: PackedFiles, shard: Shard) -> None:
    """Note that a shard is whole."""
    with files.writing(_record(shard.file)) as path:
        path.write_text(shard.model_dump_json(), encoding="utf-8")
