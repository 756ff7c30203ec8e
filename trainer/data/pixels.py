"""Pixels: any image, turned into a square of 8-bit RGB.

The camera's turn is undone, transparency is laid on white, grey and CMYK become RGB, 16 bits
become 8 (the upper ones), the short side is resized with antialiasing and the centre is cut out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainer.data.files import raise_if_passing
from trainer.data.source import BLOCK_SIZE
from trainer.errors import DataError

__all__ = ["ArrayBlocks", "array_blocks", "decoded_blocks", "read_image", "to_square_rgb"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # none of them runs another program
NUM_DECODERS = 4  # threads; Pillow decodes outside the interpreter's lock
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # Pillow's own limit, about 0.25 GB of RGB


def read_image(file: Path | BytesIO, *, image_size: int, shown_name: str) -> NDArray[np.uint8]:
    """Return the image in a file, or in the content of one, as (image_size, image_size, 3).

    Raises:
        DataError: If the file is no readable image, is truncated, or has more than MAX_PIXELS.
        StorageUnavailable: If the disk, the share or the node fails while it is read.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(shown_name) from error
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{shown_name} cannot be read: {error.strerror}", file=shown_name) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise_if_passing(error, name=shown_name)
        raise DataError(f"{shown_name} is no image that can be read ({', '.join(FORMATS)})", file=shown_name) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(shown_name)
        try:
            return to_square_rgb(image, image_size=image_size)
        except DataError as error:
            raise DataError(f"{shown_name}: {error.message}", file=shown_name) from error
        except Exception as error:  # damaged files make decoders raise anything
            raise_if_passing(error, name=shown_name)
            raise DataError(f"{shown_name} is damaged or truncated: {error}", file=shown_name) from error


def _too_large(name: str) -> DataError:
    return DataError(f"{name} has more than {MAX_PIXELS:,} pixels; scale it down first", file=name)


def to_square_rgb(image: Image.Image, *, image_size: int) -> NDArray[np.uint8]:
    """Return an image as (image_size, image_size, 3): short side resized, centre cut out."""
    rgb = _to_rgb(ImageOps.exif_transpose(image))
    if rgb.size != (image_size, image_size):
        rgb = ImageOps.fit(rgb, (image_size, image_size), method=Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("pixels are floating point numbers of unknown range; store 8 or 16 bits")
    if image.mode.startswith("I"):
        return _upper_byte(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _upper_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise DataError("pixels have more than 16 bits; store 8 or 16")
    return Image.fromarray((values >> 8).astype(np.uint8))


def decoded_blocks(files: Iterable[tuple[str, Path | BytesIO]], *, image_size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield image files, each with the name it is shown by, in blocks of (b, image_size, image_size, 3).

    Raises:
        DataError: At the first that cannot be read, with its name.
        StorageUnavailable: If the disk, the share or the node fails.
    """

    def read(named: tuple[str, Path | BytesIO]) -> NDArray[np.uint8]:
        name, file = named
        return read_image(file, image_size=image_size, shown_name=name)

    rest = iter(files)
    with ThreadPoolExecutor(NUM_DECODERS) as pool:
        while block := list(islice(rest, BLOCK_SIZE)):
            yield np.stack(list(pool.map(read, block)))


class Array(Protocol):
    """An array of images, or what reads like one: uint8, NHW or NHWC."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class ArrayBlocks:
    """The blocks of images that are pixels already."""

    images: Array = field(repr=False)  # NHW, or NHWC with 3 or 4 channels

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, rows: slice) -> ArrayBlocks:
        """Return some of them."""
        return ArrayBlocks(self.images[rows])

    def __call__(self, image_size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all of them, resized where they have another size."""
        is_ready = self.images.shape[1:] == (image_size, image_size, 3)
        for start in range(0, self.images.shape[0], BLOCK_SIZE):
            block = self.images[start : start + BLOCK_SIZE]
            yield block if is_ready else np.stack([_resized(image, image_size) for image in block])


def array_blocks(images: NDArray[np.uint8]) -> ArrayBlocks:
    """Return the blocks of images that are already in memory: NHW or NHWC with 1, 3 or 4 channels."""
    is_grey = images.ndim == 4 and images.shape[-1] == 1  # noqa: PLR2004 - NHWC
    return ArrayBlocks(images[..., 0] if is_grey else images)


def _resized(image: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    return to_square_rgb(Image.fromarray(image), image_size=image_size)
