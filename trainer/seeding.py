"""Randomness without state: every number is a hash of where it is used.

A draw is a function of (seed, epoch, sample id, view, stream) alone: not of the worker, the batch
or the order in which draws are made. So a view is the same wherever and whenever it is drawn.

The hash is SplitMix64's output function (Steele, Lea and Flood 2014), chained over the words of
the key, on 64-bit integers that wrap. Its constants are part of the product's promise: changing
one changes every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = [
    "Uninitialised",
    "draw_keys",
    "initialisation_generator",
    "normal",
    "normal_of",
    "permutation",
    "uniform",
    "uniform_of",
]

WEYL = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd
SHIFTS_AND_FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
MASK_64 = (1 << 64) - 1
PERMUTATION_STREAM = 1 << 32  # beyond the streams of any list of operations
NUM_QUANTILES = 1 << 16
INITIALISERS = frozenset(
    {"normal_", "uniform_", "fill_", "zero_", "kaiming_normal_", "kaiming_uniform_"}
)  # of torch.nn


def uniform(*, seed: int, epoch: int, sample_ids_B: Tensor, view: int | Tensor, stream: int, count: int) -> Tensor:
    """Return (B, count) float64, uniform in [0, 1) in steps of 2**-53.

    Args:
        seed: Of the run, 0..2**63 - 1.
        epoch: Counted from 0.
        sample_ids_B: int64, on the CPU, as the numbers will be.
        view: 0 or 1 for all rows, or (B,) int64, one for each.
        stream: Names the purpose, >= 0; different streams are independent.
        count: Numbers for each row.
    """
    keys_B = draw_keys(seed=seed, epoch=epoch, sample_ids_B=sample_ids_B, view=view, stream=stream)
    return uniform_of(keys_B, count=count)


def normal(*, seed: int, epoch: int, sample_ids_B: Tensor, view: int | Tensor, stream: int, count: int) -> Tensor:
    """Return (B, count) float64, standard normal; see `normal_of`. Arguments are those of `uniform`."""
    keys_B = draw_keys(seed=seed, epoch=epoch, sample_ids_B=sample_ids_B, view=view, stream=stream)
    return normal_of(keys_B, count=count)


def draw_keys(*, seed: int, epoch: int, sample_ids_B: Tensor, view: int | Tensor, stream: int) -> Tensor:
    """Return (B,) int64: the hash of all that a row's numbers depend on. Arguments are those of `uniform`."""
    key = 0
    for word in (seed, epoch, stream):
        key = _mixed_int((key + word + 1) * WEYL)
    keys_B = _mixed_(sample_ids_B * _signed(WEYL) + _signed(key))
    offset = (view + 1) * _signed(WEYL) if isinstance(view, Tensor) else _signed((view + 1) * WEYL)
    return _mixed_(keys_B + offset)


def uniform_of(keys_B: Tensor, *, count: int) -> Tensor:
    """Return (B, count) float64 in [0, 1): the first numbers of each key."""
    return torch.from_numpy((_words(_bits(keys_B, count=count)) >> 11) * 2.0**-53)


def normal_of(keys_B: Tensor, *, count: int) -> Tensor:
    """Return (B, count) float64 of mean 0 and variance 1: the first normal numbers of each key.

    Each is one of 65,536 equally likely quantiles (the largest is 4.2): a table look-up is exact
    wherever it runs, logarithms and cosines are not.
    """
    words = _bits(keys_B, count=(count + 3) // 4)
    indices = words.view(torch.int16)[:, :count].to(torch.int64) + NUM_QUANTILES // 2
    return _normal_quantiles()[indices]


def permutation(*, seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return a permutation of 0..size - 1: the order of the samples in one epoch, on every worker."""
    keys = draw_keys(seed=seed, epoch=epoch, sample_ids_B=torch.arange(size), view=0, stream=PERMUTATION_STREAM)
    return np.argsort(keys.numpy(), kind="stable").astype(np.int64, copy=False)


def initialisation_generator(seed: int, *, part: str = "head") -> torch.Generator:
    """Return a CPU generator for the first values of the parameters of one `part` of the network.

    Parts draw independent numbers from the same seed. The global generators are not touched.
    """
    digest = hashlib.sha256(f"{part}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))  # the CPU's reads 32 bits


class Uninitialised(TorchFunctionMode):
    """While entered, modules get weights that no one writes: they take no time, and no memory until touched.

    The device `meta` would do too, but its operations import torch's compiler, 1.5 s of CPU at each start.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func.__name__ in INITIALISERS:
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def _bits(keys_B: Tensor, *, count: int) -> Tensor:
    """Return (B, count) int64 of independent random bits."""
    counters = torch.arange(1, count + 1) * _signed(WEYL)
    return _mixed_(keys_B[:, None] + counters)


def _mixed_(bits: Tensor) -> Tensor:
    """Mix the bits of each int64 in place, and return it; SplitMix64's output function."""
    words = _words(bits)
    for shift, factor in SHIFTS_AND_FACTORS:
        words ^= words >> shift
        if factor != 1:
            words *= np.uint64(factor)
    return bits


def _words(bits: Tensor) -> NDArray[np.uint64]:
    """Return the memory of int64 on the CPU as unsigned: a shift brings zeros, and NumPy is quick with so few."""
    return bits.numpy().view(np.uint64)


def _mixed_int(word: int) -> int:
    """Return what `_mixed_` makes of one number, 0..2**64 - 1."""
    word &= MASK_64
    for shift, factor in SHIFTS_AND_FACTORS:
        word = ((word ^ (word >> shift)) * factor) & MASK_64
    return word


def _signed(word: int) -> int:
    """Return the int64 of the same 64 bits."""
    word &= MASK_64
    return word - (1 << 64) if word >> 63 else word


@cache
def _normal_quantiles() -> Tensor:
    """Return the middles of 65,536 equal parts of the standard normal distribution, scaled to variance 1."""
    levels = (torch.arange(NUM_QUANTILES, dtype=torch.float64) + 0.5) / NUM_QUANTILES
    quantiles: Tensor = torch.special.ndtri(levels)
    return quantiles / quantiles.square().mean().sqrt()
