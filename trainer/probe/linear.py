"""Linear probe: multinomial logistic regression on frozen features (paper, section 2.3).

Features are standardised, the optimum is found by L-BFGS from zero (no randomness), and the
strength of the L2 penalty is chosen on the validation split, as in Kornblith et al. 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainer.data.split import labelled_fraction

__all__ = ["L2_GRID", "LinearProbe", "fit_linear_probe", "fit_on_fraction"]

L2_GRID: Final = (
    1e-1,
    1e-2,
    1e-3,
    1e-4,
    1e-5,
)  # strongest first: each solution starts the next
MAX_ITERATIONS: Final = 100
MIN_STD: Final = 1e-6  # a feature that never changes stays at zero


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted classifier on features, and how well it does on the validation split."""

    weight: Tensor  # (K, R)
    bias: Tensor  # (K,)
    mean: Tensor  # (R,), of the training features
    std: Tensor  # (R,)
    l2: float
    validation_accuracy: float

    def predict(self, features_MR: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the most likely class of each row, (M,)."""
        x_MR = (torch.from_numpy(features_MR).to(self.mean) - self.mean) / self.std
        predictions: NDArray[np.int64] = (x_MR @ self.weight.T + self.bias).argmax(dim=1).cpu().numpy()
        return predictions

    def accuracy(self, features_MR: NDArray[np.float32], labels_M: NDArray[np.int64]) -> float:
        """Return the share 0..1 of rows whose class is predicted."""
        return float((self.predict(features_MR) == labels_M).mean())


def fit_linear_probe(
    features_MR: NDArray[np.float32],
    labels_M: NDArray[np.int64],
    *,
    validation_features_VR: NDArray[np.float32],
    validation_labels_V: NDArray[np.int64],
    l2_grid: Sequence[float] = L2_GRID,
    device: torch.device | str = "cpu",
) -> LinearProbe:
    """Return the probe whose penalty does best on the validation split; of equals the strongest.

    Minimises the mean cross-entropy plus l2 / 2 times the squared weights (bias left out).

    Args:
        features_MR: Training features.
        labels_M: Their classes, 0..K-1.
        validation_features_VR: Features that choose among `l2_grid`.
        validation_labels_V: Their classes.
        l2_grid: Penalties, strongest first.
        device: Where to compute.
    """
    x_MR = torch.from_numpy(features_MR).to(device)
    y_M = torch.from_numpy(labels_M).to(device)
    mean_R, std_R = x_MR.mean(dim=0), x_MR.std(dim=0, correction=0).clamp_min(MIN_STD)
    x_MR = (x_MR - mean_R) / std_R
    num_classes = int(max(labels_M.max(), validation_labels_V.max())) + 1
    weight_KR = torch.zeros(num_classes, x_MR.shape[1], device=x_MR.device)
    bias_K = torch.zeros(num_classes, device=x_MR.device)
    best: LinearProbe | None = None
    for l2 in l2_grid:
        weight_KR, bias_K = _minimise(x_MR, y_M, weight_KR, bias_K, l2=l2)
        probe = LinearProbe(weight_KR, bias_K, mean_R, std_R, l2, 0.0)
        accuracy = probe.accuracy(validation_features_VR, validation_labels_V)
        if best is None or accuracy > best.validation_accuracy:
            best = LinearProbe(weight_KR, bias_K, mean_R, std_R, l2, accuracy)
    if best is None:
        raise ValueError("l2_grid is empty")
    return best


def fit_on_fraction(
    features_MR: NDArray[np.float32],
    labels_M: NDArray[np.int64],
    *,
    fraction: float,
    key: str,
    validation_features_VR: NDArray[np.float32],
    validation_labels_V: NDArray[np.int64],
    device: torch.device | str = "cpu",
) -> LinearProbe:
    """Return the probe that sees a stratified `fraction` (0..1) of the labels (paper, section 6).

    Args:
        features_MR: Training features.
        labels_M: Their classes.
        fraction: 0.01 and 0.1 in the paper; every class keeps one label at least.
        key: Decides which labels: the data set's digest, so that all runs see the same ones.
        validation_features_VR: Features that choose the penalty.
        validation_labels_V: Their classes.
        device: Where to compute.
    """
    seen = labelled_fraction(labels_M, fraction=fraction, key=key)
    return fit_linear_probe(
        features_MR[seen],
        labels_M[seen],
        validation_features_VR=validation_features_VR,
        validation_labels_V=validation_labels_V,
        device=device,
    )


def _minimise(x_MR: Tensor, y_M: Tensor, weight_KR: Tensor, bias_K: Tensor, *, l2: float) -> tuple[Tensor, Tensor]:
    weight_KR, bias_K = weight_KR.clone().requires_grad_(), bias_K.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_KR, bias_K], max_iter=MAX_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x_MR @ weight_KR.T + bias_K, y_M) + l2 / 2 * weight_KR.square().sum()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return weight_KR.detach(), bias_K.detach()
