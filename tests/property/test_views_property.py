"""A view is the same, bit for bit, whatever surrounds it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.spec import (
    ColorJitter,
    CropResize,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    HorizontalFlip,
    Operation,
    Rotation,
    Sobel,
    ViewsSpec,
)
from trainer.views import ViewDrawer, drawer

EVERY_OPERATION: tuple[Operation, ...] = (
    CropResize(),
    HorizontalFlip(),
    ColorJitter(),
    Grayscale(),
    GaussianBlur(kernel_ratio=0.3),
    Cutout(p=0.3, size_ratio=0.3),
    Rotation(branch="second"),
    GaussianNoise(p=0.5),
    Sobel(p=0.1),
    ColorJitter(strength=2.0, branch="first"),
    CropResize(p=0.5),
)
NUM_IMAGES = 24


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def a_drawer(*operations: Operation, side: int, dtype: torch.dtype, channels_last: bool = True) -> ViewDrawer:
    spec = ViewsSpec(operations=operations or EVERY_OPERATION)
    return ViewDrawer(spec, image_size=side, seed=11, dtype=dtype, channels_last=channels_last)


def some_images(*, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (NUM_IMAGES, side, side, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("side", [9, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_view_is_the_same_alone_and_in_any_batch(side: int, dtype: torch.dtype) -> None:
    images, ids = some_images(side=side), torch.arange(NUM_IMAGES) * 7
    views = a_drawer(side=side, dtype=dtype)
    whole = views.draw_pair(images, sample_ids_B=ids, epoch=2)
    for row in range(NUM_IMAGES):
        alone = views.draw_pair(images[row : row + 1], sample_ids_B=ids[row : row + 1], epoch=2)
        assert torch.equal(alone, whole[[row, NUM_IMAGES + row]])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.lists(st.integers(0, NUM_IMAGES - 1), min_size=1, max_size=36), view=st.integers(0, 1))
def test_order_size_and_repetition_of_a_batch_change_nothing(rows: list[int], view: int) -> None:
    images, ids = some_images(side=17), torch.arange(NUM_IMAGES)
    views = a_drawer(side=17, dtype=torch.float32)
    whole = views.draw(images, sample_ids_B=ids, epoch=0, view=view)
    assert torch.equal(views.draw(images[rows], sample_ids_B=ids[rows], epoch=0, view=view), whole[rows])


def test_large_views_are_the_same_alone_and_in_a_batch() -> None:
    """Large enough for torch to share a sum over one view between threads, if asked for it, and to blur it alone."""
    images, ids = some_images(side=193)[:6], torch.arange(6)
    views = a_drawer(ColorJitter(p=1.0), GaussianBlur(p=1.0), side=193, dtype=torch.float32)
    whole = views.draw(images, sample_ids_B=ids, epoch=0, view=0)
    for row in range(6):
        alone = views.draw(images[row : row + 1], sample_ids_B=ids[row : row + 1], epoch=0, view=0)
        assert torch.equal(alone[0], whole[row])


def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, ids = some_images(side=20), torch.arange(NUM_IMAGES)
    views = a_drawer(side=20, dtype=torch.float32)
    whole = views.draw_pair(images, sample_ids_B=ids, epoch=0)
    for pixels in (1, 1300, 8000):
        monkeypatch.setattr(drawer, "BLOCK_PIXELS", pixels)
        assert torch.equal(views.draw_pair(images, sample_ids_B=ids, epoch=0), whole)


@pytest.mark.parametrize(("side", "number"), [(64, NUM_IMAGES), (193, 6)])
def test_threads_and_layout_change_nothing(side: int, number: int) -> None:
    images, ids = some_images(side=side)[:number], torch.arange(number)
    here = a_drawer(side=side, dtype=torch.float32, channels_last=False).draw_pair(images, sample_ids_B=ids, epoch=0)
    torch.set_num_threads(1)
    assert torch.equal(a_drawer(side=side, dtype=torch.float32).draw_pair(images, sample_ids_B=ids, epoch=0), here)
