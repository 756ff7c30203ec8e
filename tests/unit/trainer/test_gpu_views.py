"""Views on an accelerator: those of the CPU, alone or in any batch, and nothing waits for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.harness.devices import DEVICES, waiting_refused
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
from trainer.views import ViewDrawer

SIDE = 16
IDS = torch.tensor([3, 14, 15, 92, 65, 35, 89, 79])
OPERATIONS: list[Operation] = [
    CropResize(),
    HorizontalFlip(),
    ColorJitter(),
    Grayscale(p=0.5),
    GaussianBlur(),
    Cutout(),
    Rotation(),
    GaussianNoise(),
    Sobel(),
]
LISTS = [*((operation,) for operation in OPERATIONS), tuple(OPERATIONS)]
NAMES = [*(operation.op for operation in OPERATIONS), "all"]


def a_drawer(operations: tuple[Operation, ...]) -> ViewDrawer:
    return ViewDrawer(
        ViewsSpec(operations=operations), image_size=SIDE, seed=0, dtype=torch.float32, channels_last=True
    )


def draw(operations: tuple[Operation, ...], device: torch.device | str, *, rows: slice = slice(None)) -> Tensor:
    images = torch.randint(0, 256, (len(IDS), SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0))
    return a_drawer(operations).draw_pair(images[rows].to(torch.uint8).to(device), sample_ids_B=IDS[rows], epoch=1)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("operations", LISTS, ids=NAMES)
def test_views_are_those_of_the_cpu(operations: tuple[Operation, ...], device: torch.device) -> None:
    views = draw(operations, device)
    assert views.device.type == device.type
    # exp and pow of a device may round another way, and each operation adds to it
    torch.testing.assert_close(views.cpu(), draw(operations, "cpu"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("operations", LISTS, ids=NAMES)
def test_a_view_is_the_same_to_the_bit_alone_and_in_a_batch(
    operations: tuple[Operation, ...], device: torch.device
) -> None:
    together = draw(operations, device)
    for index in (0, 5):
        alone = draw(operations, device, rows=slice(index, index + 1))
        assert torch.equal(alone, together[[index, index + len(IDS)]])


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("operations", LISTS, ids=NAMES)
def test_drawing_makes_the_host_wait_for_nothing(operations: tuple[Operation, ...], device: torch.device) -> None:
    draw(operations, device)  # kernels and tables are loaded
    images = torch.zeros(len(IDS), SIDE, SIDE, 3, dtype=torch.uint8, device=device)
    with waiting_refused(device):
        views = a_drawer(operations).draw_pair(images, sample_ids_B=IDS, epoch=1)
    assert views.isfinite().all()
