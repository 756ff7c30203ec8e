"""The projection head g: z = g(h) (paper, section 4.2). It is trained with f and never exported."""

from __future__ import annotations

from torch import nn

from trainer.seeding import Uninitialised, initialisation_generator
from trainer.spec import ProjectionHeadSpec

__all__ = ["build_projection_head"]

STD = 0.01  # of the weights' first values; the paper's reference code


def build_projection_head(spec: ProjectionHeadSpec, *, width_of_h: int, seed: int) -> nn.Module:
    """Return g, from h (B, width_of_h) to z (B, D), initialised from `seed` alone.

    `none` is the identity (D is then the width of h), `linear` one matrix without bias. `nonlinear`
    is the paper's reference code: layers of `hidden_dim` with batch norm (or, without it, a bias)
    and ReLU, then a last one without bias or ReLU, whose batch norm scales and does not shift.
    """
    if spec.kind == "none":
        return nn.Identity()
    if spec.kind == "linear":
        head = nn.Sequential(*_layer(width_of_h, spec.dim, is_last=True, has_batch_norm=False))
    else:
        hidden_dim = width_of_h if spec.hidden_dim is None else spec.hidden_dim
        widths = [width_of_h, *[hidden_dim] * (spec.num_layers - 1)]
        hidden = [
            layer
            for width in widths[:-1]
            for layer in _layer(width, hidden_dim, is_last=False, has_batch_norm=spec.batch_norm)
        ]
        head = nn.Sequential(*hidden, *_layer(widths[-1], spec.dim, is_last=True, has_batch_norm=spec.batch_norm))
    _initialise_(head, seed=seed)
    return head


def _layer(in_dim: int, out_dim: int, *, is_last: bool, has_batch_norm: bool) -> list[nn.Module]:
    with Uninitialised():
        linear = nn.Linear(in_dim, out_dim, bias=not (is_last or has_batch_norm))
    norm = [nn.BatchNorm1d(out_dim, bias=not is_last)] if has_batch_norm else []
    return [linear, *norm, *([] if is_last else [nn.ReLU(inplace=True)])]


def _initialise_(head: nn.Module, *, seed: int) -> None:
    generator = initialisation_generator(seed, part="head")
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=STD, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
