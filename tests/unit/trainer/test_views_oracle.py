"""Every operation against torchvision's function for one image, with the parameters that were drawn."""

from __future__ import annotations

import colorsys
import itertools
import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torch.nn import functional

from trainer.spec import ColorJitter, CropResize, Cutout, GaussianBlur, GaussianNoise, HorizontalFlip, Rotation, Sobel
from trainer.views.blur import RandomBlur, blur, blur_radius
from trainer.views.chance import Chance
from trainer.views.color import HUE, Adjustments, RandomJitter, adjust_contrast_, adjust_hue_, grayscale_, jitter_
from trainer.views.corruption import AddNoise, RandomCutout, cut_out_, sobel
from trainer.views.crop import Boxes, RandomCrop, crop_resize
from trainer.views.geometry import RandomTurn, turn
from trainer.views.transformation import build_transformation

M = 24
DTYPES = [torch.float32, torch.float64]


def some_planes(*, side: int, dtype: torch.dtype) -> Tensor:
    """Return (3, M, side, side): noise, smooth, saturated, grey, black and white images."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(3, M, side, side, generator=generator, dtype=torch.float64)
    planes[:, : M // 2] = functional.avg_pool2d(planes[:, : M // 2], 5, stride=1, padding=2)
    planes[:, 1] = planes[:, 1].round()
    planes[:, 2] = planes[0, 2]
    planes[:, 3], planes[:, 4] = 0, 1
    planes[0, 5], planes[1:, 5] = 0.2, 0.7  # cyan, half a turn from red
    return planes.to(dtype)


def some_chance(*, num_views: int = M, stream: int = 1) -> Chance:
    ids, views = torch.arange(num_views), torch.arange(num_views) % 2
    return Chance(seed=3, epoch=4, sample_ids=ids, views=views, stream=stream)


def assert_close(actual: Tensor, expected: Tensor, *, dtype: torch.dtype, single: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=single if dtype == torch.float32 else 1e-12)


def images_of(planes_CMHW: Tensor) -> list[Tensor]:
    return list(planes_CMHW.transpose(0, 1).contiguous())


def planes_of(images: list[Tensor]) -> Tensor:
    return torch.stack(images, dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("side", "antialias"), [(32, False), (32, True), (33, False)])
def test_crop_equals_resized_crop(side: int, dtype: torch.dtype, antialias: bool) -> None:  # noqa: FBT001 - a parameter
    """Torch keeps the scale in float32, which is exact for 32 pixels and not for 33."""
    planes = some_planes(side=side, dtype=dtype)
    boxes = RandomCrop(CropResize(scale=(0.01, 1.0), ratio=(0.3, 3.0)), side=side).draw(some_chance())
    expected = [
        tv.resized_crop(image, *(int(values[row]) for values in boxes), size=[side, side], antialias=antialias)
        for row, image in enumerate(images_of(planes))
    ]
    precision = dtype if side == 32 else torch.float32
    assert_close(crop_resize(planes, boxes), planes_of(expected), dtype=precision, single=1e-5)


def test_a_crop_of_the_whole_image_changes_no_bit() -> None:
    planes = some_planes(side=32, dtype=torch.float32)
    zero, whole = torch.zeros(M, dtype=torch.int64), torch.full((M,), 32)
    assert torch.equal(crop_resize(planes, Boxes(zero, zero, whole, whole)), planes)


def test_mirror_equals_hflip() -> None:
    planes = some_planes(side=33, dtype=torch.float32)
    mirrored = build_transformation(HorizontalFlip(), side=33).apply(planes, ())
    assert torch.equal(mirrored, planes_of([tv.horizontal_flip(image) for image in images_of(planes)]))


def adjusted(image: Tensor, adjustments: Adjustments, row: int) -> Tensor:
    """Return one image adjusted by torchvision."""
    for kind in adjustments.order[row].tolist():
        if kind == HUE:
            image = tv.adjust_hue(image, float(adjustments.hue[row]))
        else:
            adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)[kind]
            image = adjust(image, float(adjustments.factors[row, kind]))
    return image


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_jitter_equals_the_adjustments_in_their_order(strength: float) -> None:
    planes = some_planes(side=17, dtype=torch.float32)
    adjustments = RandomJitter(ColorJitter(strength=strength)).draw(some_chance())
    expected = [adjusted(image, adjustments, row) for row, image in enumerate(images_of(planes))]
    jitter_(planes, adjustments)
    torch.testing.assert_close(planes, planes_of(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [3, 224])
def test_contrast_leaves_the_mean_grey_where_it_is(side: int, dtype: torch.dtype) -> None:
    """A factor of 0 leaves nothing but the mean, which is as exact as the type of the views."""
    planes = torch.rand(3, 2, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    expected = [tv.rgb_to_grayscale(image.double()).mean().expand(3, side, side) for image in images_of(planes)]
    adjust_contrast_(planes, torch.zeros(2, dtype=dtype))
    assert_close(planes, planes_of(expected).to(dtype), dtype=dtype, single=1e-7)


def test_hue_equals_adjust_hue_all_around_the_circle() -> None:
    planes = some_planes(side=17, dtype=torch.float32)
    hue = torch.linspace(-0.5, 0.5, M, dtype=torch.float64)
    expected = [tv.adjust_hue(image, float(hue[row])) for row, image in enumerate(images_of(planes))]
    adjust_hue_(planes, hue)
    torch.testing.assert_close(planes, planes_of(expected), rtol=0, atol=1e-5)


def test_hue_in_double_precision_equals_the_textbook_conversion() -> None:
    """Torchvision turns hue in float32 whatever it is given; the standard library does not."""
    planes = some_planes(side=3, dtype=torch.float64)
    turns = torch.linspace(-0.5, 0.5, M, dtype=torch.float64)
    expected = planes.clone()
    for view, row, column in itertools.product(range(M), range(3), range(3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*planes[:, view, row, column].tolist())
        turned = colorsys.hsv_to_rgb((hue + turns[view].item()) % 1, saturation, value)
        expected[:, view, row, column] = torch.tensor(turned, dtype=torch.float64)
    adjust_hue_(planes, turns)
    torch.testing.assert_close(planes, expected, rtol=0, atol=1e-12)


def test_grayscale_equals_rgb_to_grayscale() -> None:
    planes = some_planes(side=33, dtype=torch.float64)
    expected = [tv.rgb_to_grayscale(image, num_output_channels=3) for image in images_of(planes)]
    grayscale_(planes)
    torch.testing.assert_close(planes, planes_of(expected), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [21, 64, 130])  # from 128 on each view by itself
def test_blur_equals_gaussian_blur(side: int, dtype: torch.dtype) -> None:
    planes = some_planes(side=side, dtype=dtype)
    (sigma,) = RandomBlur(GaussianBlur(), side=side).draw(some_chance())
    size = 2 * blur_radius(0.1, side=side) + 1
    expected = [
        tv.gaussian_blur(image, kernel_size=[size, size], sigma=[float(sigma[row])] * 2)
        for row, image in enumerate(images_of(planes))
    ]
    blurred = blur(planes, sigma, radius=size // 2)
    assert_close(blurred, planes_of(expected), dtype=dtype, single=2e-6)


@pytest.mark.parametrize(("side", "radius"), [(8, 1), (32, 1), (96, 4), (224, 11)])
def test_the_blur_kernel_is_a_tenth_of_the_side(side: int, radius: int) -> None:
    assert blur_radius(0.1, side=side) == radius


def test_cutout_equals_erase() -> None:
    planes = some_planes(side=33, dtype=torch.float32)
    squares = RandomCutout(Cutout(), side=33).draw(some_chance())
    expected = []
    for row, image in enumerate(images_of(planes)):
        top, bottom, left, right = (int(values[row]) for values in squares)
        expected.append(tv.erase(image, top, left, bottom - top, right - left, torch.tensor(0.5)))
    cut_out_(planes, squares)
    assert torch.equal(planes, planes_of(expected))


def test_turn_equals_rotate() -> None:
    planes = some_planes(side=33, dtype=torch.float32)
    (quarters,) = RandomTurn().draw(some_chance())
    expected = [tv.rotate(image, 90.0 * int(quarters[row])) for row, image in enumerate(images_of(planes))]
    assert torch.equal(turn(planes, quarters), planes_of(expected))


def test_noise_is_normal_and_clamped() -> None:
    operation = AddNoise(GaussianNoise(std=0.1))
    grey = torch.full((3, M, 32, 32), 0.5, dtype=torch.float64)
    noise = operation.apply(grey.clone(), operation.draw(some_chance())) - 0.5
    assert abs(noise.mean()) < 0.001
    assert noise.std() == pytest.approx(0.1, rel=0.01)
    black = operation.apply(torch.zeros_like(grey), operation.draw(some_chance()))
    torch.testing.assert_close(black, noise.clamp(min=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sobel_equals_convolution_with_its_kernels(dtype: torch.dtype) -> None:
    planes = some_planes(side=33, dtype=dtype)
    across = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    padded = functional.pad(planes.double(), [1, 1, 1, 1], mode="replicate").flatten(0, 1)[:, None]
    x, y = (functional.conv2d(padded, kernel[None, None]) for kernel in (across, across.T))
    expected = ((x.square() + y.square()).sqrt() / 4).clamp(max=1).view_as(planes)
    assert build_transformation(Sobel(), side=33).draw(some_chance()) == ()
    assert_close(sobel(planes), expected.to(dtype), dtype=dtype, single=1e-6)


def test_every_kind_of_rotation_is_drawn() -> None:
    drawn = build_transformation(Rotation(), side=32).draw(some_chance(num_views=4000))[0]
    for quarters in range(4):
        assert (drawn == quarters).double().mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
