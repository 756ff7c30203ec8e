"""Shards: the pixels of a data set in flat files, uint8 NHWC RGB without a header, all images of one size.

A shard holds a run of images in the order of their source, so its content follows from the source
and the cut alone: whoever writes it, and whenever, writes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from trainer.data.packed_files import PackedFiles
from trainer.data.source import BLOCK_SIZE, ImageBlocks
from trainer.errors import DataError, StorageUnavailable

__all__ = [
    "IMAGE_DIGEST_BYTES",
    "LeftOut",
    "Shard",
    "WrittenShard",
    "damaged",
    "image_bytes",
    "read_shard",
    "write_shard",
]

IMAGE_DIGEST_BYTES: Final = 16


class LeftOut(BaseModel):
    """An image that could not be read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    row: int = Field(ge=0)  # in the part of the source that the shard holds
    why: str


class Shard(BaseModel):
    """What a shard is meant to hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: str = Field(pattern=r"^(train|test)-\d{5}\.raw$")
    num_images: int = Field(ge=0)
    sha256: str  # of the file
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A shard that is where it belongs."""

    shard: Shard
    image_digests: bytes = field(repr=False)  # IMAGE_DIGEST_BYTES for each image


def image_bytes(image_size: int) -> int:
    """Return the bytes of one image."""
    return image_size * image_size * 3


def write_shard(
    path: Path, images: ImageBlocks, *, image_size: int, name: str | None = None, leaves_out_unreadable: bool = False
) -> WrittenShard:
    """Decode images into a new file and return what it holds.

    Args:
        path: The file.
        images: What it is to hold, in order.
        image_size: Pixels a side.
        name: What the file will be called in the end; None: as now.
        leaves_out_unreadable: Note what cannot be read and go on without it.

    Raises:
        DataError: At an image that cannot be read, with its name.
        StorageUnavailable: If the images cannot be reached.
        OSError: If the file cannot be written.
    """
    sha256, digests = hashlib.sha256(), bytearray()
    left_out: list[LeftOut] = []
    blocks = _readable(images, image_size, left_out) if leaves_out_unreadable else images(image_size)
    with path.open("wb") as file:  # not mapped: a full disk is an error then, no signal
        for block in _reached(blocks):
            content = block.tobytes()
            file.write(content)
            sha256.update(content)
            digests += _image_digests(content, image_size)
    shard = Shard(
        file=name or path.name,
        num_images=len(digests) // IMAGE_DIGEST_BYTES,
        sha256=sha256.hexdigest(),
        left_out=tuple(left_out),
    )
    return WrittenShard(shard=shard, image_digests=bytes(digests))


def _reached(blocks: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the blocks; that one cannot be read is told apart from that it cannot be written."""
    try:
        yield from blocks
    except OSError as error:
        raise StorageUnavailable(f"the images cannot be read at present: {error}") from error


def damaged(name: str, file: str, how: str) -> DataError:
    """Return the error of a file that is not what it is meant to be, of the packed data set `name`."""
    return DataError(
        f"{name}/{file} is damaged: {how}; `simclr datasets pack` with --resume writes it again", file=file
    )


def read_shard(files: PackedFiles, shard: Shard, *, image_size: int) -> WrittenShard:
    """Read a shard's file to its end and return the shard with the digests of its images.

    Raises:
        DataError: If the file cannot be read or is not what it is meant to be; names it.
        StorageUnavailable: If its bucket does not answer.
    """
    sha256, digests = hashlib.sha256(), bytearray()
    try:
        with files.reading(shard.file) as path, path.open("rb") as file:
            while content := file.read(BLOCK_SIZE * image_bytes(image_size)):
                sha256.update(content)
                digests += _image_digests(content, image_size)
    except OSError as error:
        raise damaged(files.name, shard.file, error.strerror or "it cannot be read") from error
    if sha256.hexdigest() != shard.sha256:
        raise damaged(files.name, shard.file, "its sha256 is not the one it was written with")
    return WrittenShard(shard=shard, image_digests=bytes(digests))


def _image_digests(content: bytes, image_size: int) -> bytes:
    size = image_bytes(image_size)
    return b"".join(
        hashlib.blake2b(content[start : start + size], digest_size=IMAGE_DIGEST_BYTES).digest()
        for start in range(0, len(content), size)
    )


def _readable(images: ImageBlocks, image_size: int, left_out: list[LeftOut]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of all blocks that can be read, and of the others those that can."""
    for start in range(0, len(images), BLOCK_SIZE):
        block = images[start : start + BLOCK_SIZE]
        try:
            yield from list(block(image_size))
        except DataError:
            for row in range(len(block)):
                try:
                    yield from block[row : row + 1](image_size)
                except DataError as error:
                    left_out.append(LeftOut(row=start + row, why=error.message))
