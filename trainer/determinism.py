"""The same numbers give the same bits: what an accelerator has to be told for it."""

from __future__ import annotations

import os

import torch
import torch.utils.deterministic

__all__ = ["compute_repeatably"]


def compute_repeatably(device: torch.device) -> None:
    """Have this process compute on `device` the same way each time, and in float32 where float32 is asked for.

    On CUDA: no algorithm is chosen by how fast it was just now, none adds up in the order in which
    threads happen to come, and convolutions keep float32's 23 bits where TensorFloat-32 has 10. What
    torch has in no such form warns. The CPU's kernels do so as they are. Call before the first
    product of matrices: cuBLAS reads its setting once.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # none is read
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
