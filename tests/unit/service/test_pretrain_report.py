"""What the report of a pretraining says of its numbers."""

from __future__ import annotations

import pytest

from service.views.pretrain_report import _number, _verdict
from trainer.metric_names import KNN_ACCURACY as KNN
from trainer.metric_names import RANDOM_ENCODER_KNN_ACCURACY as RANDOM
from trainer.metric_names import RAW_PIXEL_KNN_ACCURACY as RAW

SURE = {RAW: 0.001, RANDOM: 2e-5}


@pytest.mark.parametrize(
    ("metrics", "paired_p", "start"),
    [
        ({KNN: 0.6, RAW: 0.5, RANDOM: 0.4}, SURE, "The encoder knows more than raw pixels and the untrained encoder"),
        ({KNN: 0.6, RAW: 0.5, RANDOM: 0.4}, {}, "The encoder knows more than raw pixels and the untrained encoder"),
        ({KNN: 0.5, RAW: 0.49, RANDOM: 0.55}, SURE, "The encoder does not beat the untrained encoder:"),
        ({KNN: 0.4, RAW: 0.49, RANDOM: 0.3}, SURE, "The encoder does not beat raw pixels:"),
        ({KNN: 0.4, RAW: 0.4, RANDOM: 0.4}, {}, "The encoder does not beat raw pixels and the untrained encoder:"),
        ({KNN: 0.5, RAW: 0.49, RANDOM: 0.3}, SURE | {RAW: 0.4}, "Whether the encoder beats raw pixels can't be told"),
        ({KNN: 0.5, RAW: 0.49}, {}, "Not measured against its baselines yet."),
        ({KNN: 0.5, RAW: 0.49, RANDOM: None}, {}, "Not measured against its baselines yet."),
        ({}, {}, "Not measured against its baselines yet."),
        ({KNN: 0.6, RAW: 0.5, RANDOM: 0.4, "h_collapsed": 1.0}, SURE, "h has collapsed"),
    ],
)
def test_an_encoder_is_judged_by_both_baselines_and_by_pairs_of_images(
    metrics: dict[str, float | None], paired_p: dict[str, float], start: str
) -> None:
    assert _verdict(metrics, paired_p).startswith(start)


def test_the_verdict_gives_its_numbers() -> None:
    verdict = _verdict({KNN: 0.55, RAW: 0.5, RANDOM: 0.4}, SURE)
    assert "+0.050 against raw pixels (paired p = 0.001)" in verdict
    assert "+0.150 against the untrained encoder (paired p = 2e-05)" in verdict


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2.0000"), (0.0, "0.0000"), (1.24e-14, "1.2e-14"), (-3.5, "-3.5000")]
)
def test_a_small_number_is_not_shown_as_none(value: float, text: str) -> None:
    assert _number(value) == text
