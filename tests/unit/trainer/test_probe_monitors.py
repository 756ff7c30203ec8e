"""Collapse monitors and the paired test, at values known in closed form."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.probe.monitors import Spread, alignment, effective_rank, has_collapsed, mean_std, spread, uniformity
from trainer.probe.paired import McNemar, mcnemar


def test_collapsed_representations_have_no_spread_and_rank_one() -> None:
    h_MR = torch.ones(50, 16)
    assert mean_std(h_MR) == pytest.approx(0, abs=1e-12)
    assert effective_rank(h_MR) == pytest.approx(1)


def test_evenly_spread_representations_have_full_rank_and_std() -> None:
    h_MR = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(h_MR) == pytest.approx(8)
    assert mean_std(h_MR) == pytest.approx(1 / math.sqrt(8))


def test_rank_counts_equal_directions() -> None:
    h_MR = torch.zeros(30, 10)
    h_MR[:, :3] = torch.eye(3).repeat(10, 1)
    assert effective_rank(5 * h_MR) == pytest.approx(3)


@pytest.mark.parametrize(
    ("trained", "untrained", "expected"),
    [
        (Spread(std=0.0009, rank=9.0), Spread(std=0.01, rank=9.0), True),  # it hardly varies any more
        (Spread(std=0.0011, rank=9.0), Spread(std=0.01, rank=9.0), False),
        (Spread(std=0.1, rank=1.9), Spread(std=0.01, rank=9.0), True),  # it varies along one direction
        (Spread(std=0.1, rank=2.1), Spread(std=0.01, rank=9.0), False),
        (Spread(std=0.01, rank=1.5), Spread(std=0.01, rank=1.6), False),  # images that are alike
    ],
)
def test_collapse_is_judged_against_the_untrained_encoder(
    *, trained: Spread, untrained: Spread, expected: bool
) -> None:
    assert has_collapsed(trained, untrained=untrained) is expected
    assert spread(torch.ones(50, 16)).std < 1e-12


def test_identical_views_align_and_opposite_views_are_farthest() -> None:
    z_BD = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    assert alignment(torch.cat([z_BD, 3 * z_BD])) == pytest.approx(0, abs=1e-12)
    assert alignment(torch.cat([z_BD, -z_BD])) == pytest.approx(4)


def test_uniformity_is_the_log_of_the_mean_gaussian_potential() -> None:
    z_BD = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])  # pairs at squared distances 2, 4, 2
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity(torch.cat([z_BD, z_BD])) == pytest.approx(expected)
    assert uniformity(torch.ones(8, 3)) == pytest.approx(0)


def test_mcnemar_matches_the_published_example() -> None:
    """Of 25 discordant pairs, 6 against 19 (binomial tail computed by hand)."""
    labels = np.zeros(40, np.int64)
    first, second = labels.copy(), labels.copy()
    first[:19] = 1
    second[19:25] = 1
    tail = sum(math.comb(25, k) for k in range(7)) / 2**25
    found = mcnemar(first, second, labels=labels)
    assert (found.num_only_first, found.num_only_second) == (6, 19)
    assert found.p_exact == pytest.approx(2 * tail)
    assert found.p_mid == pytest.approx(2 * tail - math.comb(25, 6) / 2**25)


def test_equal_predictions_differ_in_nothing() -> None:
    labels = np.arange(5)
    assert mcnemar(labels, labels, labels=labels) == McNemar(0, 0, p_exact=1.0, p_mid=1.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_mcnemar_is_symmetric_and_a_probability(rows: list[tuple[int, int, int]]) -> None:
    first, second, labels = np.array(rows, np.int64).T
    one, other = mcnemar(first, second, labels=labels), mcnemar(second, first, labels=labels)
    assert (one.p_exact, one.p_mid) == (other.p_exact, other.p_mid)
    assert 0 < one.p_mid <= one.p_exact <= 1


def of_pairs(only_first: int, only_second: int) -> McNemar:
    """Return the comparison of two classifiers of which so many images are classified rightly by one alone."""
    labels = np.zeros(only_first + only_second, np.int64)
    first = np.repeat(np.array([0, 1]), [only_first, only_second])
    return mcnemar(first, 1 - first, labels=labels)


@pytest.mark.parametrize("num_pairs", [1, 2, 3, 10, 101, 1000, 2001])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.45, 0.49, 0.5])
def test_mcnemar_is_the_sum_of_the_binomials_exact_terms(num_pairs: int, share: float) -> None:
    fewer = int(share * num_pairs)
    two_tails = float(Fraction(2 * sum(math.comb(num_pairs, count) for count in range(fewer + 1)), 2**num_pairs))
    seen = float(Fraction(math.comb(num_pairs, fewer), 2**num_pairs))
    found = of_pairs(fewer, num_pairs - fewer)
    assert found.p_exact == pytest.approx(min(1.0, two_tails), rel=1e-12, abs=1e-300)
    assert found.p_mid == pytest.approx(min(1.0, two_tails - seen), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("deviations", [0.0, 0.5, 2.0, 5.0])
def test_a_million_pairs_are_compared_at_once_and_as_the_normal_distribution_has_it(deviations: float) -> None:
    fewer = 500_000 - round(500 * deviations)  # the standard deviation is 500
    began_s = time.perf_counter()
    found = of_pairs(fewer, 1_000_000 - fewer)
    assert time.perf_counter() - began_s < 5, "the sum of exact terms takes hours"
    assert found.p_mid == pytest.approx(math.erfc(deviations / math.sqrt(2)), rel=1e-4)
    assert found.p_mid <= found.p_exact <= 1
    assert of_pairs(0, 1_000_000).p_exact == 0  # below what a float holds


def test_vectors_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 predictions for 3 labels"):
        mcnemar(np.zeros(3, np.int64), np.zeros(2, np.int64), labels=np.zeros(3, np.int64))
