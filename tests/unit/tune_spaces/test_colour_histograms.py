"""Colour histograms of views, and how well they tell images apart."""

from __future__ import annotations

import numpy as np

from tune_spaces.reports.colour_histograms import NUM_BINS, histogram_match, histograms


def test_a_histogram_counts_each_channel_by_itself() -> None:
    views = np.zeros((1, 3, 4, 4), np.float32)
    views[:, 1] = 1.0
    found = histograms(views).reshape(3, NUM_BINS)
    assert found[0, 0] == found[1, NUM_BINS - 1] == found[2, 0] == 1.0
    assert found.sum() == 3.0


def test_images_of_their_own_colours_are_matched_and_grey_ones_are_not() -> None:
    colours = np.random.default_rng(0).random((20, 3, 1, 1), dtype=np.float32)
    views = np.broadcast_to(colours, (20, 3, 8, 8))
    found = histograms(np.concatenate([views, views]))
    assert histogram_match(found[:20], found[20:]) > 0.9
    same = np.full_like(found[:20], 0.5)
    assert histogram_match(same, same) == 1 / 20
