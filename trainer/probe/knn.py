"""Weighted k-nearest-neighbour probe on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from trainer.matrix_product import product

__all__ = ["KNN_KS", "KNN_TEMPERATURE", "KnnResult", "knn_probe"]

KNN_KS: Final = (20, 200)  # the online choice, and Wu et al.'s
KNN_TEMPERATURE: Final = 0.1  # of the weights exp(s / temperature); Wu et al. use 0.07
BLOCK_ELEMENTS: Final = 2**24  # similarities held at a time, 64 MB


@dataclass(frozen=True, eq=False)
class KnnResult:
    """What one k predicts."""

    k: int  # neighbours asked; all of the bank if it is smaller
    predictions: NDArray[np.int64]  # (Q,)
    accuracy: float  # 0..1


def knn_probe(
    bank_MR: NDArray[np.float32],
    bank_labels_M: NDArray[np.int64],
    queries_QR: NDArray[np.float32],
    query_labels_Q: NDArray[np.int64],
    *,
    ks: Sequence[int] = KNN_KS,
    temperature: float = KNN_TEMPERATURE,
    leaves_self_out: bool = False,
    device: torch.device | str = "cpu",
) -> dict[int, KnnResult]:
    """Return, for each k, the classes that neighbours in the bank vote for.

    A neighbour of cosine similarity s votes with weight exp(s / temperature); equal sums go to
    the lower class. All k share one search. Q x M similarities are held in blocks.

    Args:
        bank_MR: Features of known class, of any scale.
        bank_labels_M: Their classes, 0..K-1.
        queries_QR: Features to classify.
        query_labels_Q: Their true classes, for the accuracy.
        ks: Numbers of neighbours.
        temperature: Unitless, > 0.
        leaves_self_out: The queries are the bank itself, and no row votes for itself.
        device: Where to compute.
    """
    num_classes = int(max(bank_labels_M.max(), query_labels_Q.max())) + 1
    bank = normalize(torch.from_numpy(bank_MR).to(device), dim=1)
    bank_labels = torch.from_numpy(bank_labels_M).to(device)
    block = max(1, BLOCK_ELEMENTS // len(bank))
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    num_voters = len(bank) - leaves_self_out
    for start in range(0, len(queries_QR), block):
        queries = torch.from_numpy(queries_QR[start : start + block]).to(device)
        similarity = product(normalize(queries, dim=1), bank.T)
        if leaves_self_out:
            similarity.diagonal(start).fill_(-torch.inf)
        nearest = similarity.topk(min(max(ks), num_voters), dim=1)  # in order: a smaller k takes the first of them
        weights = torch.exp((nearest.values - nearest.values[:, :1]) / temperature)  # the nearest has 1: no overflow
        classes = bank_labels[nearest.indices]
        for k in ks:
            votes = torch.zeros(len(queries), num_classes, device=similarity.device)
            votes.scatter_add_(1, classes[:, :k], weights[:, :k])
            predictions[k].append(votes.argmax(dim=1))
    return {k: _result(k, torch.cat(parts).cpu().numpy(), query_labels_Q) for k, parts in predictions.items()}


def _result(k: int, predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> KnnResult:
    return KnnResult(k=k, predictions=predictions, accuracy=float((predictions == labels).mean()))
