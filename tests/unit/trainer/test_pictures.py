"""Pictures are PNG files of what they were given, drawn without matplotlib's global state."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from trainer.gallery import neighbours_grid
from trainer.pictures import confusion_png, curve_png, embedding_png

GENERATOR = np.random.default_rng(0)
FEATURES = GENERATOR.normal(size=(60, 6)).astype(np.float32)
LABELS = GENERATOR.integers(0, 3, 60)
NAMES = ("$cats", "dogs & <b>", "bird_s^2")


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    assert min(image.size) > 200
    return image


def test_curves_show_series_and_baselines() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (3.0, 3.5)]
    with_baseline = curve_png({"loss": points}, title="loss", baselines={"raw pixels": 4.5})
    assert opened(with_baseline).tobytes() != opened(curve_png({"loss": points}, title="loss")).tobytes()


def test_a_series_without_points_is_drawn_empty() -> None:
    opened(curve_png({"loss": []}, title="nothing yet"))


@pytest.mark.parametrize("labels", [LABELS, None])
def test_map_of_representations(labels: np.ndarray | None) -> None:
    opened(embedding_png(FEATURES, labels, NAMES if labels is not None else None))


def test_map_of_representations_of_one_dimension() -> None:
    opened(embedding_png(FEATURES[:, :1], LABELS, NAMES))


def test_gallery_puts_the_nearest_image_beside_the_query() -> None:
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
    bank = np.repeat(colours, 64, axis=0).reshape(3, 8, 8, 3)
    features = np.eye(3, dtype=np.float32)
    grid = neighbours_grid(bank[:2], features[:2], bank_images_MHWC=bank, bank_features_MR=features, num_neighbours=1)
    assert grid.shape == (2 * 64, 64 + 4 + 64, 3)
    for row, colour in zip(np.split(grid, 2), colours, strict=False):
        assert (row[:, :64] == colour).all()
        assert (row[:, 68:] == colour).all()


def test_confusions_need_no_image_of_every_class() -> None:
    truth = np.array([0, 0, 1])
    opened(confusion_png(truth, np.array([0, 1, 1]), NAMES))
    right, wrong = confusion_png(truth, truth, NAMES), confusion_png(truth, 2 - truth, NAMES)
    assert right != wrong


def test_the_same_data_gives_the_same_bytes_from_any_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(lambda _: confusion_png(LABELS, LABELS, NAMES), range(4)))
    assert len(set(pictures)) == 1


def test_pyplot_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    opened(curve_png({"loss": [(1, 2.0)]}, title="loss"))
    opened(embedding_png(FEATURES, LABELS, NAMES))
