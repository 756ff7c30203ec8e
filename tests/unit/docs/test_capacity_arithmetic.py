"""The capacity tables of docs/operations.md say what the code's own sizes come to."""

from __future__ import annotations

import re

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import network
from tests.harness.page import page, section, table
from trainer.learner import SimclrLearner
from trainer.seeding import Uninitialised
from trainer.spec import PretrainSpec

CAPACITY = section(page("operations.md"), "Capacity")
UNITS = {"MB": 1e6, "GB": 1e9, "GFLOP": 1e9, "million": 1e6, "ms": 1e-3}
ROUNDING = 0.05  # two digits


def quantity(words: str) -> float:
    """Return the first number of a cell in bytes, operations or seconds."""
    match = re.search(r"([\d,]+(?:\.\d+)?)(?: (MB|GB|GFLOP|million|ms)\b)?", words)
    assert match is not None, words
    return float(match[1].replace(",", "")) * UNITS.get(match[2], 1)


@pytest.fixture(scope="module")
def learner() -> SimclrLearner:
    """Return what a pretraining of ResNet-50 trains, by its defaults, without its numbers."""
    spec = PretrainSpec.model_validate(
        {"data": {"dataset": "any", "image_size": 224}, "encoder": {"name": "resnet50", "stem": "imagenet"}}
    )
    assert spec.projection_head.dim == network.WIDTH == 128
    with FakeTensorMode(), Uninitialised():
        return SimclrLearner(spec, group=None)


def channels(learner: SimclrLearner) -> list[int]:
    return [module.num_features for module in learner.modules() if isinstance(module, _BatchNorm)]


def test_the_sizes_of_the_model_are_those_of_the_code(learner: SimclrLearner) -> None:
    (told,) = re.findall(r"\(P = (.*?): (.*?) of gradients; L = (\d+), ([\d,]+) channels in all\)", CAPACITY)
    num_parameters = sum(parameter.numel() for parameter in learner.parameters())
    assert quantity(told[0]) == pytest.approx(num_parameters, rel=ROUNDING)
    assert quantity(told[1]) == pytest.approx(4 * num_parameters, rel=ROUNDING)
    assert [int(told[2]), quantity(told[3])] == [len(channels(learner)), sum(channels(learner))]


def test_the_table_for_8_to_1024_gpus_is_what_its_formulas_come_to(learner: SimclrLearner) -> None:
    rows = [[quantity(cell) for cell in row] for row in table(CAPACITY, "GPUs (W)")]
    assert {row[0] for row in rows} == {8, 64, 1024}
    num_parameters, width = sum(parameter.numel() for parameter in learner.parameters()), network.WIDTH
    for num_ranks, num_images, *told in rows:
        share = (num_ranks - 1) / num_ranks
        expected = [
            num_images / num_ranks,
            2 * num_images * width * 4 * share,
            2 * 4 * num_parameters * share,
            sum(num_ranks * (2 * each + 1) * 4 + 2 * 2 * each * 4 * share for each in channels(learner)),
            2 * num_images / num_ranks * 2 * num_images * 4,
            2 * (2 * num_images / num_ranks) * 2 * num_images * width,
        ]
        assert told == [pytest.approx(value, rel=ROUNDING) for value in expected]


def test_the_arithmetic_beside_what_was_measured_is_that_of_the_benchmark() -> None:
    told = {row[0]: row[1] for row in table(CAPACITY, "W = 2")}
    received = {
        "gather": 2 * network.NUM_IMAGES * network.WIDTH * 4 / 2,
        "gradients": 2 * 4 * network.NUM_PARAMETERS / 2,
    }
    messages = {"gather": 1, "gradients": 2}
    for what, num_bytes in received.items():
        assert quantity(told[f"{what}, received by a rank"]) == pytest.approx(num_bytes, rel=ROUNDING)
        for name, cable in network.CABLES.items():
            if cable is None:
                continue
            seconds = 8e-6 * num_bytes / cable.mbit_per_s + messages[what] * 1e-3 * cable.delay_ms
            over = f"{what}, over {name.replace(', ', ' and ')}"
            assert quantity(told[over]) == pytest.approx(seconds, rel=ROUNDING)
