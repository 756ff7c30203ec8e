"""Splits and sample order: functions of the data, or of seed and epoch, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.data.dataset import Subset
from trainer.data.order import epoch_batches, local_slice, num_dropped, steps_per_epoch
from trainer.data.reader import BatchReader
from trainer.data.split import held_out, labelled_fraction
from trainer.errors import SpecError


def split(
    labels: NDArray[np.int64], *, ratio: float, key: str = "k", groups: NDArray[np.int64] | None = None
) -> set[int]:
    held = held_out(num_images=len(labels), labels=labels, groups=groups, ratio=ratio, key=key)
    return set(np.flatnonzero(held).tolist())


LABELS = st.lists(st.integers(0, 4), min_size=10, max_size=80).map(np.array)


@settings(deadline=None, max_examples=50)
@given(labels=LABELS, ratio=st.floats(0.05, 0.85))
def test_every_class_gives_its_share_to_within_one(labels: NDArray[np.int64], ratio: float) -> None:
    held = split(labels, ratio=ratio)
    for label in set(labels.tolist()):
        members = set(np.flatnonzero(labels == label).tolist())
        if len(members) > 1:
            assert abs(len(held & members) - ratio * len(members)) <= 1
            assert held & members
            assert members - held


@settings(deadline=None, max_examples=50)
@given(labels=LABELS, low=st.floats(0.05, 0.4), high=st.floats(0.4, 0.85))
def test_a_smaller_split_lies_inside_a_larger(labels: NDArray[np.int64], low: float, high: float) -> None:
    assert split(labels, ratio=low) <= split(labels, ratio=high)


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 5), min_size=4, max_size=30), ratio=st.floats(0.1, 0.8))
def test_groups_never_part(sizes: list[int], ratio: float) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = groups % 2
    held = split(labels, ratio=ratio, groups=groups)
    for group in range(len(sizes)):
        members = set(np.flatnonzero(groups == group).tolist())
        assert members <= held or not members & held


def test_a_split_depends_on_its_key_alone() -> None:
    labels = np.repeat(np.arange(4), 50)
    assert split(labels, ratio=0.2, key="a") == split(labels, ratio=0.2, key="a")
    assert split(labels, ratio=0.2, key="a") != split(labels, ratio=0.2, key="b")


def test_one_percent_of_the_labels_still_has_every_class() -> None:
    labels = np.repeat(np.arange(10), 30)
    seen = labelled_fraction(labels, fraction=0.01, key="k")
    assert sorted(labels[seen]) == list(range(10))
    assert len(labelled_fraction(labels, fraction=0.1, key="k")) == 30


def test_incomplete_last_batch_is_dropped() -> None:
    assert steps_per_epoch(103, 10) == 10
    assert num_dropped(103, 10) == 3


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(SpecError, match="use at most 9"):
        steps_per_epoch(9, 10)


def test_ranks_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(SpecError, match="not divisible by 3"):
        local_slice(step=0, batch_size=8, rank=0, num_workers=3)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_together_read_the_same_batches_in_rank_order(num_workers: int) -> None:
    def batches(rank: int, workers: int, first_step: int = 0) -> list[NDArray[np.int64]]:
        return list(
            epoch_batches(
                seed=3, epoch=2, num_images=50, batch_size=8, rank=rank, num_workers=workers, first_step=first_step
            )
        )

    alone = batches(0, 1)
    together = [batches(rank, num_workers) for rank in range(num_workers)]
    np.testing.assert_array_equal([np.concatenate(parts) for parts in zip(*together, strict=True)], alone)
    assert len(set(np.concatenate(alone).tolist())) == 48
    np.testing.assert_array_equal(batches(0, 1, first_step=4), alone[4:])


def test_reader_hands_out_the_rows_asked_for_in_order() -> None:
    array = np.arange(10 * 2 * 2 * 3, dtype=np.uint8).reshape(10, 2, 2, 3)
    ids = np.array([1, 4, 5, 9])
    reader = BatchReader(Subset(array=array, sample_ids=ids, labels=np.array([0, 1, 0, 1])))
    order = [np.array([3, 0]), np.array([2, 1]), np.array([1, 1])]
    batches = list(reader.read(order))
    for positions, batch in zip(order, batches, strict=True):
        np.testing.assert_array_equal(batch.images, array[ids[positions]])
        np.testing.assert_array_equal(batch.sample_ids, ids[positions])
        assert batch.images.flags.c_contiguous
        assert batch.images.flags.writeable


def test_a_failing_order_reaches_the_caller() -> None:
    reader = BatchReader(Subset(array=np.zeros((2, 1, 1, 3), np.uint8), sample_ids=np.arange(2), labels=None))
    with pytest.raises(IndexError):
        list(reader.read([np.array([5])]))
