"""The drawer: which operations meet which views, and in which form views come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.spec import (
    ColorJitter,
    CropResize,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    Rotation,
    Sobel,
    ViewsSpec,
)
from trainer.views import ViewDrawer, preview_grid, to_input

SIDE = 16


def some_images(count: int, *, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def a_drawer(*operations: Operation, **changes: Any) -> ViewDrawer:
    spec = ViewsSpec(operations=operations) if operations else ViewsSpec()
    settings: dict[str, Any] = {"image_size": SIDE, "seed": 0, "dtype": torch.float32, "channels_last": False}
    return ViewDrawer(spec, **(settings | changes))


def changed_views(drawer: ViewDrawer, *, count: int, view: int) -> Tensor:
    images = some_images(count)
    views = drawer.draw(images, sample_ids_B=torch.arange(count), epoch=0, view=view)
    return (views != to_input(images, dtype=torch.float32, channels_last=False)).flatten(1).any(dim=1)


def test_an_input_is_the_image_divided_by_255() -> None:
    images = some_images(2)
    inputs = to_input(images, dtype=torch.float64, channels_last=True)
    assert torch.equal(inputs.permute(0, 2, 3, 1), images.double() / 255)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_an_operation_that_nothing_drew_leaves_images_as_they_are() -> None:
    assert not changed_views(a_drawer(Sobel(p=0.0)), count=50, view=0).any()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8, 1.0])
def test_an_operation_is_applied_with_its_probability(p: float) -> None:
    share = changed_views(a_drawer(HorizontalFlip(p=p)), count=2000, view=0).double().mean()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 2000) ** 0.5)


@pytest.mark.parametrize(
    ("branch", "expected"), [("both", (True, True)), ("first", (True, False)), ("second", (False, True))]
)
def test_an_operation_is_applied_on_its_branch(branch: str, expected: tuple[bool, bool]) -> None:
    drawer = a_drawer(Sobel.model_validate({"branch": branch}))
    for view in (0, 1):
        assert set(changed_views(drawer, count=20, view=view).tolist()) == {expected[view]}


def test_operations_are_applied_in_the_order_of_the_spec() -> None:
    images, ids = some_images(8), torch.arange(8)
    grey_first, edges_first = (
        a_drawer(*operations).draw(images, sample_ids_B=ids, epoch=0, view=0)
        for operations in ((Grayscale(p=1.0), Sobel()), (Sobel(), Grayscale(p=1.0)))
    )
    assert not torch.allclose(grey_first, edges_first)


def test_two_operations_of_one_kind_draw_apart() -> None:
    changed = changed_views(a_drawer(HorizontalFlip(), HorizontalFlip()), count=1000, view=0)
    assert changed.double().mean() == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"view": 1}, {"ids": 100}])
def test_another_seed_epoch_view_or_id_gives_other_views(change: dict[str, int]) -> None:
    images = some_images(1).repeat(4, 1, 1, 1)
    draws: list[tuple[float, ...]] = []
    for where in ({}, change):
        drawer = a_drawer(CropResize(), ColorJitter(p=1.0), seed=where.get("seed", 0))
        ids = torch.arange(4) + where.get("ids", 0)
        views = drawer.draw(images, sample_ids_B=ids, epoch=where.get("epoch", 0), view=where.get("view", 0))
        draws += [tuple(view.flatten().tolist()) for view in views]
    assert len(set(draws)) == 8


def test_a_pair_is_the_first_views_and_then_the_second_views() -> None:
    images, ids = some_images(5), torch.tensor([4, 8, 15, 16, 23])
    drawer = a_drawer()
    pair = drawer.draw_pair(images, sample_ids_B=ids, epoch=3)
    singles = [drawer.draw(images, sample_ids_B=ids, epoch=3, view=view) for view in (0, 1)]
    assert torch.equal(pair, torch.cat(singles))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_come_in_the_type_and_layout_asked_for(dtype: torch.dtype, channels_last: bool) -> None:  # noqa: FBT001
    drawer = a_drawer(dtype=dtype, channels_last=channels_last)
    views = drawer.draw(some_images(3), sample_ids_B=torch.arange(3), epoch=0, view=0)
    assert (views.dtype, views.shape) == (dtype, (3, 3, SIDE, SIDE))
    assert views.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert 0 <= views.min() < views.max() <= 1


def test_double_precision_refines_single_precision() -> None:
    images, ids = some_images(64), torch.arange(64)
    single, double = (
        a_drawer(CropResize(), ColorJitter(), GaussianBlur(), Rotation(), dtype=dtype).draw_pair(
            images, sample_ids_B=ids, epoch=0
        )
        for dtype in (torch.float32, torch.float64)
    )
    assert not torch.equal(double, double.float().double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_no_images_give_no_views() -> None:
    views = a_drawer().draw_pair(some_images(0), sample_ids_B=torch.arange(0), epoch=0)
    assert views.shape == (0, 3, SIDE, SIDE)


@pytest.mark.parametrize("images", [some_images(2).float(), some_images(2, side=8), some_images(2)[..., :1]])
def test_images_of_another_type_or_size_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"views are drawn of torch.uint8 \(B, 16, 16, 3\)"):
        a_drawer().draw(images, sample_ids_B=torch.arange(2), epoch=0, view=0)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    a_drawer().draw_pair(some_images(4), sample_ids_B=torch.arange(4), epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_preview_shows_each_image_beside_its_views() -> None:
    images, drawer = some_images(3), a_drawer()
    grid = preview_grid(images, drawer, sample_ids_B=torch.arange(3), epoch=5, columns=4)
    assert grid.shape == (3 * (SIDE + 2) - 2, 5 * (SIDE + 2) - 2, 3)
    assert torch.equal(torch.from_numpy(grid[:SIDE, :SIDE]), images[0])
    second = drawer.draw(images, sample_ids_B=torch.arange(3), epoch=5, view=1)[2]
    shown = torch.from_numpy(grid[-SIDE:, 2 * (SIDE + 2) :][:, :SIDE].copy())
    assert torch.equal(shown, (second * 255).round().to(torch.uint8).permute(1, 2, 0))
