"""Build a SimCLR encoder and load its weights, with torch and safetensors alone.

    from encoder import load_encoder, to_input
    f = load_encoder(".")                     # the folder of encoder.json and encoder.safetensors
    h = f(to_input(images_uint8_BHWC))        # representations, (B, width of h)

ResNets of He et al. 2016 (arXiv 1512.03385) under torchvision's parameter names, so that
`torchvision.models.resnet18` and its like load the same file where they can express it: width 1,
batch norm. Beyond it: `width` multiplies every channel count (SimCLR, Fig. 7), `stem: cifar` is a
3x3 stride-1 convolution without pooling (SimCLR, appendix B.9), `norm: group` has no batch
statistics, and resnet8/14/20 are the three-stage networks of He et al., section 4.2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """How a ResNet of one name is laid out: blocks a stage, channels of the first, kind of block."""

    num_blocks: tuple[int, ...]
    base_channels: int = 64
    has_bottleneck: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "resnet8": Architecture((1, 1, 1), base_channels=16),
    "resnet14": Architecture((2, 2, 2), base_channels=16),
    "resnet20": Architecture((3, 3, 3), base_channels=16),
    "resnet18": Architecture((2, 2, 2, 2)),
    "resnet34": Architecture((3, 4, 6, 3)),
    "resnet50": Architecture((3, 4, 6, 3), has_bottleneck=True),
    "resnet101": Architecture((3, 4, 23, 3), has_bottleneck=True),
    "resnet152": Architecture((3, 8, 36, 3), has_bottleneck=True),
}


def group_norm(num_channels: int) -> nn.Module:
    """Return a group norm of at most 32 groups (Wu and He 2018) and at least 4 channels a group."""
    return nn.GroupNorm(min(32, num_channels // 4), num_channels)


NORMS: dict[str, NormLayer] = {"batch": nn.BatchNorm2d, "group": group_norm}


def conv(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the side at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, kernel=3, stride=stride)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(channels, channels, kernel=3)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride=stride, norm=norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output, (B, channels, H / stride, W / stride)."""
        out_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        out_BCHW = self.bn2(self.conv2(out_BCHW))
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.relu(out_BCHW + shortcut_BCHW)  # type: ignore[no-any-return] # modules are untyped calls


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision has it) and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: NormLayer) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = conv(in_channels, channels, kernel=1)
        self.bn1 = norm(channels)
        self.conv2 = conv(channels, channels, kernel=3, stride=stride)
        self.bn2 = norm(channels)
        self.conv3 = conv(channels, out_channels, kernel=1)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride=stride, norm=norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output, (B, 4 channels, H / stride, W / stride)."""
        out_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        out_BCHW = self.relu(self.bn2(self.conv2(out_BCHW)))
        out_BCHW = self.bn3(self.conv3(out_BCHW))
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.relu(out_BCHW + shortcut_BCHW)  # type: ignore[no-any-return] # modules are untyped calls


def _shortcut(in_channels: int, out_channels: int, *, stride: int, norm: NormLayer) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, kernel=1, stride=stride), norm(out_channels))


class ResNet(nn.Module):
    """f: images to representations h, the average of the last stage over space."""

    def __init__(self, *, name: str, stem: str = "cifar", width: int = 1, norm: str | NormLayer = "batch") -> None:
        super().__init__()
        layout = ARCHITECTURES[name]
        norm_layer = NORMS[norm] if isinstance(norm, str) else norm
        block = Bottleneck if layout.has_bottleneck else BasicBlock
        channels = layout.base_channels * width
        is_cifar = stem == "cifar"
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False) if is_cifar else _imagenet_stem(channels)
        self.bn1 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if is_cifar else nn.MaxPool2d(3, stride=2, padding=1)
        self.stage_names = tuple(f"layer{stage + 1}" for stage in range(len(layout.num_blocks)))
        in_channels = channels
        for stage, num_blocks in enumerate(layout.num_blocks):
            blocks = []
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(in_channels, channels << stage, stride=stride, norm=norm_layer))
                in_channels = (channels << stage) * block.expansion
            self.add_module(self.stage_names[stage], nn.Sequential(*blocks))
        self.width_of_h = in_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return h, (B, width_of_h), of RGB images scaled to 0..1, (B, 3, H, W)."""
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        for name in self.stage_names:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return average_over_space(x_BCHW)


def average_over_space(x_BCHW: Tensor) -> Tensor:
    """Return the mean over height and width, (B, C).

    Its gradient has the layout of what is averaged: torch takes ten times as long over the next
    step of backward where it is contiguous and the activations are channels_last.
    """
    if x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return x_BCHW.permute(0, 2, 3, 1).mean(dim=(1, 2))
    return x_BCHW.mean(dim=(2, 3))


def _imagenet_stem(channels: int) -> nn.Conv2d:
    return nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)


def build_encoder(architecture: dict[str, Any]) -> ResNet:
    """Return the encoder that the `architecture` part of encoder.json names, untrained."""
    return ResNet(**{key: architecture[key] for key in ("name", "stem", "width", "norm")})


def to_input(images_BHWC: Tensor) -> Tensor:
    """Return uint8 RGB images, (B, H, W, 3), as the encoder reads them: float 0..1, (B, 3, H, W)."""
    return images_BHWC.permute(0, 3, 1, 2).to(torch.float32) / 255


def load_encoder(path: str | Path = ".") -> ResNet:
    """Return the trained encoder of a bundle's folder, float32, on the CPU, in evaluation mode."""
    from safetensors.torch import load_file

    folder = Path(path)
    record = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    encoder = build_encoder(record["architecture"])
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    return encoder.eval()
