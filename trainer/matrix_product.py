"""Matrix products in float32 on the CPU, by the library that takes the processor's widest vectors.

`torch.mm` goes to MKL, which keeps to AVX2 on processors that are not Intel's: half the rate, or
less, of oneDNN's kernels, which torch has too and offers under no public name.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Final

import torch
from torch import Tensor

__all__ = ["product"]

# None: this torch was built without it.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_SAMPLE_ROWS: Final = 256  # for each thread, enough that each has its share
_FEWER_THREADS: Final = ("OMP_THREAD_LIMIT", "OMP_DYNAMIC")
_SAMPLE_TOLERANCE: Final = 1e-3


def product(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """Return `left @ right`, without gradient; as exact as `torch.mm`, to the rounding of another order."""
    with torch.no_grad():
        if not (_is_meant_for_it(left_MK) and _is_meant_for_it(right_KN) and _is_whole(torch.get_num_threads())):
            return torch.mm(left_MK, right_KN)
        return _by_onednn(left_MK, right_KN)


def _is_meant_for_it(matrix: Tensor) -> bool:
    """Return whether it is float32 on the CPU, and one piece of memory: others it would take value by value."""
    is_one_piece = matrix.is_contiguous() or matrix.T.is_contiguous()
    return matrix.dtype == torch.float32 and matrix.device.type == "cpu" and is_one_piece


@cache
def _is_whole(num_threads: int) -> bool:
    """Return whether oneDNN is there and makes whole products on so many threads.

    Where OpenMP gives it fewer threads than it asked for, it leaves out what the others would have
    made: it is not used where the environment lets that happen, and proves itself on a sample elsewhere.
    """
    if _ONEDNN_LINEAR is None or any(os.environ.get(name, "false").lower() != "false" for name in _FEWER_THREADS):
        return False
    generator = torch.Generator().manual_seed(0)
    left_MK = torch.randn(_SAMPLE_ROWS * num_threads, 128, generator=generator)
    right_KN = torch.randn(128, 256, generator=generator)
    difference = (_by_onednn(left_MK, right_KN) - torch.mm(left_MK, right_KN)).abs().max()
    return bool(difference < _SAMPLE_TOLERANCE)  # not so for NaN


def _by_onednn(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    assert _ONEDNN_LINEAR is not None  # noqa: S101 - for the type checker
    found: Tensor = _ONEDNN_LINEAR(left_MK, right_KN.T, None, "none", [], "")
    return found
