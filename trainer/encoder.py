"""The encoder f: h = f(x) (paper, section 2.1). Its ResNets are those that travel in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.batch_norm import running_statistics_frozen
from trainer.bundle.encoder import ARCHITECTURES, ResNet, average_over_space
from trainer.seeding import Uninitialised, initialisation_generator
from trainer.spec import EncoderSpec

__all__ = ["ARCHITECTURES", "Encoder", "build_encoder", "checkpoint_blocks"]


class Encoder(ResNet):
    """A ResNet that can recompute its blocks in backward; parameters and outputs are the same."""

    is_checkpointed = False
    _compiled_blocks: list[Callable[[Tensor], Tensor]] | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return h, (B, width_of_h), of RGB images in 0..1, (B, 3, H, W)."""
        if not (self.is_checkpointed and torch.is_grad_enabled()):
            return super().forward(x_BCHW)
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        blocks = list(self.blocks())
        computations: Sequence[Callable[[Tensor], Tensor]] = self._compiled_blocks or blocks
        for block, compute in zip(blocks, computations, strict=True):
            x_BCHW = _recomputed(block, compute, x_BCHW)
        return average_over_space(x_BCHW)

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the residual blocks, first to last."""
        for name in self.stage_names:
            yield from self.get_submodule(name).children()

    def compile_blocks(self) -> None:
        """Compile each block where it is recomputed in backward; whoever evaluates calls them as they are."""
        self._compiled_blocks = [torch.compile(block.forward) for block in self.blocks()]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: not what was compiled, which computes with these parameters."""
        return {name: value for name, value in super().__getstate__().items() if name != "_compiled_blocks"}  # type: ignore[no-untyped-call]


def build_encoder(spec: EncoderSpec, *, seed: int) -> Encoder:
    """Return f, float32 on the default device, initialised from `seed` alone; global generators are not touched.

    Convolutions start as He et al. 2015 have it (normal, fan out, as torchvision), norms as identity.
    Parameters are named as torchvision names them; a new encoder is one entry of `ARCHITECTURES`.
    """
    with Uninitialised():
        encoder = Encoder(name=spec.name, stem=spec.stem, width=spec.width, norm=spec.norm)
    generator = initialisation_generator(seed, part="encoder")
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.reset_parameters()
    return encoder


def checkpoint_blocks(encoder: Encoder) -> None:
    """Let each residual block forget its activations and recompute them in backward.

    Memory for activations falls to the blocks' inputs, for one more forward pass. Gradients and
    running statistics are the same to the bit: a recomputation does not count as another batch.
    """
    encoder.is_checkpointed = True


def _recomputed(block: nn.Module, compute: Callable[[Tensor], Tensor], x_BCHW: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_statistics_frozen(block)

    out_BCHW: Tensor = checkpoint(compute, x_BCHW, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out_BCHW
