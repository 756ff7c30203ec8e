"""The encoder: torchvision's names and outputs, the paper's widths, seeds and checkpointing."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from trainer.bundle.encoder import average_over_space
from trainer.encoder import ARCHITECTURES, Encoder, build_encoder, checkpoint_blocks
from trainer.spec import EncoderSpec


def an_encoder(*, seed: int = 0, **spec: Any) -> Encoder:
    return build_encoder(EncoderSpec(**({"name": "resnet8"} | spec)), seed=seed)


def reference(name: str, *, stem: str) -> nn.Module:
    """Return torchvision's network, with the stem of a spec and without its classifier."""
    with torch.device("meta"):
        model: nn.Module = getattr(torchvision.models, name)()
        model.fc = nn.Identity()
        if stem == "cifar":
            model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def num_parameters(**spec: Any) -> int:
    parts = EncoderSpec(**spec)
    with torch.device("meta"):
        encoder = Encoder(name=parts.name, stem=parts.stem, width=parts.width, norm=parts.norm)
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "stem"),
    [("resnet18", "imagenet"), ("resnet18", "cifar"), pytest.param("resnet50", "imagenet", marks=pytest.mark.slow)],
)
def test_torchvision_takes_the_weights_and_computes_the_same_h(name: str, stem: str) -> None:
    encoder = an_encoder(name=name, stem=stem)
    model = reference(name, stem=stem)
    assert list(model.state_dict()) == list(encoder.state_dict())
    model.to_empty(device="cpu").load_state_dict(encoder.state_dict())
    images = torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        for mode in (True, False):
            h = encoder.train(mode)(images)
            assert h.shape == (2, encoder.width_of_h)
            torch.testing.assert_close(h, model.train(mode)(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.state_dict(), dict(model.state_dict()))


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet152"])
def test_the_other_encoders_have_torchvision_s_parameters(name: str) -> None:
    with torch.device("meta"):
        encoder = Encoder(name=name, stem="imagenet")
    model = reference(name, stem="imagenet")
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in encoder.state_dict().items()} == expected


@pytest.mark.parametrize(("width", "millions"), [(1, 24), (2, 94), (4, 375)])
def test_a_wide_resnet50_has_as_many_parameters_as_the_paper_says(width: int, millions: int) -> None:
    """The paper's section 5 counts the encoder without a classifier (Table 6)."""
    assert num_parameters(name="resnet50", stem="imagenet", width=width) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize(("name", "millions"), [("resnet8", 0.08), ("resnet14", 0.17), ("resnet20", 0.27)])
def test_the_cifar_family_is_as_large_as_he_et_al_say(name: str, millions: float) -> None:
    """Projections in two shortcuts come on top of the paper's parameter-free ones: 2,752 with their norms."""
    assert num_parameters(name=name) / 1e6 == pytest.approx(millions, abs=0.007)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("width", [1, 2])
def test_width_multiplies_every_channel(name: str, width: int) -> None:
    with torch.device("meta"):
        narrow, wide = Encoder(name=name), Encoder(name=name, width=width)
    assert wide.width_of_h == width * narrow.width_of_h
    for one, other in zip(narrow.modules(), wide.modules(), strict=True):
        if isinstance(one, nn.Conv2d) and isinstance(other, nn.Conv2d):
            assert other.out_channels == width * one.out_channels


@pytest.mark.parametrize(("stem", "side"), [("cifar", 8), ("imagenet", 2)])
def test_the_stem_decides_how_soon_an_image_shrinks(stem: str, side: int) -> None:
    sides: list[int] = []
    encoder = an_encoder(stem=stem)
    encoder.get_submodule("layer3").register_forward_hook(
        lambda _module, _inputs, output: sides.append(output.shape[-1])
    )
    encoder(torch.rand(2, 3, 32, 32))
    assert sides == [side]


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_group_norm_leaves_no_batch_norm_and_no_tie_between_images(name: str) -> None:
    encoder = an_encoder(name=name, norm="group")
    assert not [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not list(encoder.buffers())
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(encoder(images)[:1], encoder(images[:1]))


def test_first_values_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    one, again, other = (an_encoder(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, values in one.items():
        assert torch.equal(values, again[name])
        assert torch.equal(values, other[name]) == (values.ndim < 4)


def test_first_values_are_he_s() -> None:
    """Normal with the variance 2 / fan out; norms are the identity."""
    encoder = an_encoder(name="resnet18")
    weight = encoder.get_parameter("layer3.0.conv2.weight").detach()
    assert weight.std() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean()) < 1e-3
    state = encoder.state_dict()
    assert {float(state[f"layer4.1.bn2.{name}"].unique()) for name in ("weight", "running_var")} == {1.0}
    assert {float(state[f"layer4.1.bn2.{name}"].unique()) for name in ("bias", "running_mean")} == {0.0}


class CumulativeBatchNorm(nn.BatchNorm2d):
    """A subclass that keeps its statistics in its own way."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        mean = input.mean(dim=(0, 2, 3))
        if self.training and self.running_mean is not None:
            self.running_mean.add_(mean.detach())
        return input - mean[:, None, None]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_no_gradient_changes_its_layout_on_its_way_back(layout: torch.memory_format) -> None:
    encoder = build_encoder(EncoderSpec(name="resnet8"), seed=0).to(memory_format=layout)
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: Any, output: Tensor) -> None:
        output.register_hook(seen.append)  # type: ignore[no-untyped-call] # torch gives it no types

    for module in encoder.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(watch)
    encoder(torch.rand(2, 3, 8, 8).to(memory_format=layout)).square().sum().backward()
    assert len(seen) == 7
    assert all(gradient.is_contiguous(memory_format=layout) for gradient in seen)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_the_average_over_space_is_the_mean(layout: torch.memory_format) -> None:
    x_BCHW = torch.rand(3, 5, 4, 6).to(memory_format=layout)
    assert torch.equal(average_over_space(x_BCHW), x_BCHW.mean(dim=(2, 3)))


@pytest.mark.parametrize("norm", ["batch", "group", "own"])
def test_checkpointing_changes_no_gradient_and_no_running_statistic(norm: str) -> None:
    own = partial(CumulativeBatchNorm, affine=False)
    plain = Encoder(name="resnet14", norm=own) if norm == "own" else an_encoder(name="resnet14", norm=norm)
    checkpointed = copy.deepcopy(plain)
    checkpoint_blocks(checkpointed)
    images = torch.rand(4, 3, 16, 16)
    for encoder in (plain, checkpointed):
        for _ in range(2):  # two forward passes before one backward, as contrastive codes do
            encoder(images)
        (encoder(images) * torch.linspace(-1, 1, encoder.width_of_h)).sum().backward()
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert torch.equal(one.grad, other.grad), name
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()


def test_checkpointing_forgets_the_activations_inside_blocks() -> None:
    saved: dict[bool, int] = {}
    for is_checkpointed in (False, True):
        encoder = an_encoder(name="resnet20")
        if is_checkpointed:
            checkpoint_blocks(encoder)
        sizes = Counter[str]()

        def count(saved_tensor: Tensor, sizes: Counter[str] = sizes) -> None:
            sizes["numel"] += saved_tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
            encoder(torch.rand(2, 3, 32, 32))
        saved[is_checkpointed] = sizes["numel"]
    assert saved[True] < saved[False] / 3


def test_a_checkpointed_encoder_evaluates_as_a_plain_one() -> None:
    encoder = an_encoder()
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        expected = encoder.eval()(images)
        checkpoint_blocks(encoder)
        assert torch.equal(encoder(images), expected)
