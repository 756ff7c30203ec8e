"""The objectives by brute force: whole matrices, one process, autograd. Row k and row k + N are a pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit
from torch.nn.functional import softplus

from trainer.losses import build_objective
from trainer.spec import LossSpec

OBJECTIVES: dict[str, LossSpec] = {
    "nt_xent": LossSpec(temperature=0.3),
    "nt_xent cold": LossSpec(temperature=0.01),
    "nt_xent without l2": LossSpec(temperature=2.0, normalize=False),
    "nt_logistic": LossSpec(kind="nt_logistic", temperature=0.3),
    "nt_logistic without l2": LossSpec(kind="nt_logistic", temperature=2.0, normalize=False),
    "nt_logistic semi-hard": LossSpec(kind="nt_logistic", temperature=0.3, semi_hard=True),
    "margin": LossSpec(kind="margin", margin=0.4),
    "margin without l2": LossSpec(kind="margin", margin=1.0, normalize=False),
    "margin semi-hard": LossSpec(kind="margin", margin=0.4, semi_hard=True),
}


def oracle_loss(spec: LossSpec, z_2ND: Tensor) -> Tensor:
    """Return the mean over all anchors, each one's negatives visited in a loop."""
    num_views = len(z_2ND)
    z_2ND = unit(z_2ND, dim=1) if spec.normalize else z_2ND
    similarity = z_2ND @ z_2ND.T
    terms = []
    for i in range(num_views):
        positive = (i + num_views // 2) % num_views
        negatives = similarity[i, [j for j in range(num_views) if j not in (i, positive)]]
        terms.append(_term(spec, similarity[i, positive], negatives))
    return torch.stack(terms).mean()


def _term(spec: LossSpec, p: Tensor, negatives: Tensor) -> Tensor:
    if spec.kind == "nt_xent":
        logits = torch.cat([p.reshape(1), negatives]) / spec.temperature
        return torch.logsumexp(logits, 0) - logits[0]
    if spec.semi_hard:
        farther = [s for s in negatives if s < p]
        negatives = torch.stack([max(farther)]) if farther else negatives[:0]
    if spec.kind == "nt_logistic":
        pull = softplus(-p / spec.temperature)
        push = softplus(negatives / spec.temperature)
    else:
        pull = 0 * p
        push = (negatives - p + spec.margin).clamp_min(0)
    return pull + push.mean() if len(push) else pull


def oracle_agreement(spec: LossSpec, z_2ND: Tensor) -> tuple[float, float]:
    """Return the contrastive accuracy and entropy of Table 5, from both sides."""
    z_2ND = unit(z_2ND, dim=1) if spec.normalize else z_2ND
    first, second = z_2ND.chunk(2)
    logits = torch.cat([first @ second.T, second @ first.T]) / spec.temperature
    labels = torch.arange(len(first)).repeat(2)
    entropy = torch.special.entr(logits.softmax(1)).sum(1)
    return (logits.argmax(1) == labels).double().mean().item(), entropy.mean().item()


def projections(num_images: int, width: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return views of which pairs are more alike than not, so that no term is at its floor or ceiling."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(2 * num_images, width, generator=generator, dtype=torch.float64)
    return (images.repeat(2, 1) + noise).to(dtype)


def value_and_gradient(spec: LossSpec, z_2ND: Tensor, *, is_oracle: bool = False) -> tuple[Tensor, Tensor]:
    """Return the loss of one process and its gradient by z."""
    leaf = z_2ND.clone().requires_grad_()
    loss = oracle_loss(spec, leaf) if is_oracle else build_objective(spec, group=None).loss(leaf)
    torch.autograd.backward(loss)
    assert leaf.grad is not None
    return loss.detach(), leaf.grad
