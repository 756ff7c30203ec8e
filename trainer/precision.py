"""Precision: which floating-point type a run computes in, and whether that is by autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Name", "Precision", "resolve_precision"]

Name = Literal["float64", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Parameters and views are kept in `dtype`; bfloat16 computes by autocast over float32."""

    name: Name
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of parameters, views and optimiser state."""
        return torch.float64 if self.name == "float64" else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that a forward pass runs in."""
        if self.name == "bfloat16":
            return torch.autocast(self.device_type, dtype=torch.bfloat16)
        return nullcontext()


def resolve_precision(asked: Literal["auto"] | Name, device: torch.device) -> Precision:
    """Return the precision in force; `auto` is bfloat16 where the hardware computes in it."""
    name: Name = asked if asked != "auto" else ("bfloat16" if _has_bfloat16(device) else "float32")
    return Precision(name=name, device_type=device.type)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001 - no public name
