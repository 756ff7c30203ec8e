"""Matrix products in float32 on the CPU, by the library that takes the processor's widest vectors.

`torch.mm` goes to MKL, which keeps to AVX2 on processors that are not Intel's: half the rate, or
less, of oneDNN's kernels, which torch has too and offers under no public name.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["product"]

# None: this torch was built without it.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """Return `left @ right`, without gradient; as exact as `torch.mm`, to the rounding of another order."""
    with torch.no_grad():
        if _ONEDNN_LINEAR is None or not (_is_meant_for_it(left_MK) and _is_meant_for_it(right_KN)):
            return torch.mm(left_MK, right_KN)
        found: Tensor = _ONEDNN_LINEAR(left_MK, right_KN.T, None, "none", [], "")
        return found


def _is_meant_for_it(matrix: Tensor) -> bool:
    """Return whether it is float32 on the CPU, and one piece of memory: others it would take value by value."""
    is_one_piece = matrix.is_contiguous() or matrix.T.is_contiguous()
    return matrix.dtype == torch.float32 and matrix.device.type == "cpu" and is_one_piece
