"""The names under which metrics are kept, in MLflow and at `/experiments/{id}/metrics`.

Accuracies are ratios 0..1. `loss`, `contrastive_accuracy`, `entropy`, `lr` have one point for
every step under its global step; `parity_error` and `num_workers` one for every start, under the
first step from where it began that has none of an earlier start; the others have one under the last
step of their epoch.
"""

from __future__ import annotations

from typing import Final

LOSS: Final = "loss"
CONTRASTIVE_ACCURACY: Final = "contrastive_accuracy"
ENTROPY: Final = "entropy"
LR: Final = "lr"
IMAGES_PER_SECOND: Final = "images_per_second"
EPOCH: Final = "epoch"
IMAGES_SEEN: Final = "images_seen"  # N a step, each once however many views it gave

KNN_ACCURACY: Final = "knn_accuracy"
KNN_ACCURACY_K200: Final = "knn_accuracy_k200"
LINEAR_ACCURACY: Final = "linear_accuracy"
LINEAR_ACCURACY_Z: Final = "linear_accuracy_z"
LINEAR_ACCURACY_1PCT: Final = "linear_accuracy_1pct"
LINEAR_ACCURACY_10PCT: Final = "linear_accuracy_10pct"
FINE_TUNED_ACCURACY: Final = "fine_tuned_accuracy"
FINE_TUNED_ACCURACY_1PCT: Final = "fine_tuned_accuracy_1pct"
FINE_TUNED_ACCURACY_10PCT: Final = "fine_tuned_accuracy_10pct"
TEST_KNN_ACCURACY: Final = "test_knn_accuracy"
TEST_LINEAR_ACCURACY: Final = "test_linear_accuracy"
TEST_FINE_TUNED_ACCURACY: Final = "test_fine_tuned_accuracy"
RAW_PIXEL_KNN_ACCURACY: Final = "raw_pixel_knn_accuracy"
RANDOM_ENCODER_KNN_ACCURACY: Final = "random_encoder_knn_accuracy"

ALIGNMENT: Final = "alignment"
UNIFORMITY: Final = "uniformity"
H_STD: Final = "h_std"
H_EFFECTIVE_RANK: Final = "h_effective_rank"
H_COLLAPSED: Final = "h_collapsed"  # 1 if a monitor says so, else 0

PARITY_ERROR: Final = "parity_error"  # |g_W - g_1| / |g_1| in float64, of the team that trains
NUM_WORKERS: Final = "num_workers"  # W

STEP_METRICS: Final = (LOSS, CONTRASTIVE_ACCURACY, ENTROPY, LR)
START_METRICS: Final = (PARITY_ERROR, NUM_WORKERS)

# Transformation prediction (SimCLR, Table 3): one name per task and per place it is read from.
TRANSFORMATION_TASKS: Final = ("colour_vs_grey", "rotation", "original_vs_corrupted", "original_vs_sobel")


def transformation_accuracy(task: str, source: str) -> str:
    """Return the metric name of predicting `task` from `source` (`h` or `z`)."""
    return f"transformation_{task}_{source}"


EVALUATION_METRICS: Final = (
    KNN_ACCURACY,
    KNN_ACCURACY_K200,
    LINEAR_ACCURACY,
    LINEAR_ACCURACY_Z,
    LINEAR_ACCURACY_1PCT,
    LINEAR_ACCURACY_10PCT,
    FINE_TUNED_ACCURACY,
    FINE_TUNED_ACCURACY_1PCT,
    FINE_TUNED_ACCURACY_10PCT,
    TEST_KNN_ACCURACY,
    TEST_LINEAR_ACCURACY,
    TEST_FINE_TUNED_ACCURACY,
    RAW_PIXEL_KNN_ACCURACY,
    RANDOM_ENCODER_KNN_ACCURACY,
    ALIGNMENT,
    UNIFORMITY,
    H_STD,
    H_EFFECTIVE_RANK,
    H_COLLAPSED,
    *(transformation_accuracy(task, source) for task in TRANSFORMATION_TASKS for source in "hz"),
)

ALL_METRICS: Final = (*STEP_METRICS, *START_METRICS, IMAGES_PER_SECOND, EPOCH, IMAGES_SEEN, *EVALUATION_METRICS)
