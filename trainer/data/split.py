"""Splits that depend on the data alone: stratified, whole groups, the same for every seed.

Each image has a place 0..1 in its class, drawn from a key; a split of ratio r takes the places
below r. So a split is stratified to within one group, and a smaller one lies inside a larger.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["held_out", "labelled_fraction"]


def held_out(
    *, num_images: int, labels: NDArray[np.int64] | None, groups: NDArray[np.int64] | None, ratio: float, key: str
) -> NDArray[np.bool_]:
    """Return which images are held out: about `ratio` (0..1) of each class, and whole groups.

    Every class of two groups or more has at least one on each side. Without labels all images
    are one class.
    """
    return _places(num_images=num_images, labels=labels, groups=groups, key=key) < ratio


def labelled_fraction(labels: NDArray[np.int64], *, fraction: float, key: str) -> NDArray[np.int64]:
    """Return the indices, ascending, of a stratified `fraction` of the labels, one a class at least (section 6)."""
    return np.flatnonzero(_places(num_images=len(labels), labels=labels, groups=None, key=key) < fraction)


def _places(
    *, num_images: int, labels: NDArray[np.int64] | None, groups: NDArray[np.int64] | None, key: str
) -> NDArray[np.float64]:
    """Return each image's place in its class: 0 for the first group, 1 for the last, else its middle."""
    groups = np.arange(num_images) if groups is None else np.unique(groups, return_inverse=True)[1]
    labels = np.zeros(num_images, np.int64) if labels is None else labels
    draws = _generator(key).random(int(groups.max()) + 1 if num_images else 0)[groups]
    order = np.lexsort((groups, draws, labels))
    places = np.empty(num_images)
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        starts = np.flatnonzero(np.diff(groups[members], prepend=-1))
        sizes = np.diff(starts, append=len(members))
        middles = (starts + sizes / 2) / max(len(members), 1)
        middles[-1:] = 1.0
        middles[:1] = 0.0
        places[members] = np.repeat(middles, sizes)
    return places


def _generator(key: str) -> np.random.Generator:
    words = np.frombuffer(hashlib.sha256(key.encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=words))
