"""Probes against brute force and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.metric_names import TRANSFORMATION_TASKS
from trainer.probe import features
from trainer.probe.features import extract_features, pixel_features, pixel_pooling
from trainer.probe.knn import knn_probe
from trainer.probe.linear import LinearProbe, fit_linear_probe, fit_on_fraction
from trainer.probe.transformation import predict_transformations, transformed

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def clusters(*, num_images: int, seed: int, spread: float = 1.0) -> tuple[Features, Labels]:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 8))
    labels = generator.integers(0, 3, num_images)
    features = centres[labels] + spread * generator.normal(size=(num_images, 8))
    return features.astype(np.float32), labels.astype(np.int64)


def brute_force_knn(bank: Features, bank_labels: Labels, query: Features, *, k: int, temperature: float) -> int:
    cosines = [float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in bank.astype(np.float64)]
    votes = np.zeros(int(bank_labels.max()) + 1)
    for index in sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]:
        votes[bank_labels[index]] += np.exp((cosines[index] - max(cosines)) / temperature)
    return int(votes.argmax())


@pytest.mark.parametrize("temperature", [0.1, 1e-4])
def test_knn_votes_as_counted_by_hand(temperature: float) -> None:
    bank, bank_labels = clusters(num_images=60, seed=0)
    queries, labels = clusters(num_images=25, seed=1)
    results = knn_probe(bank, bank_labels, queries, labels, ks=(1, 20, 200), temperature=temperature)
    for k, result in results.items():
        expected = [brute_force_knn(bank, bank_labels, query, k=k, temperature=temperature) for query in queries]
        assert result.predictions.tolist() == expected
        assert result.accuracy == pytest.approx((np.array(expected) == labels).mean())


def test_knn_is_blind_to_scale_and_to_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, bank_labels = clusters(num_images=60, seed=0)
    queries, labels = clusters(num_images=25, seed=1)
    whole = knn_probe(bank, bank_labels, queries, labels)[20]
    monkeypatch.setattr("trainer.probe.knn.BLOCK_ELEMENTS", 7 * 60)
    blocked = knn_probe(100 * bank, bank_labels, 0.01 * queries, labels)[20]
    assert whole.predictions.tolist() == blocked.predictions.tolist()


def test_knn_that_leaves_one_out_does_not_see_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(num_images=40, seed=0, spread=3.0)
    monkeypatch.setattr("trainer.probe.knn.BLOCK_ELEMENTS", 7 * 40)
    result = knn_probe(features, labels, features, labels, ks=(3,), leaves_self_out=True)[3]
    others = [np.delete(np.arange(40), index) for index in range(40)]
    expected = [
        brute_force_knn(features[rest], labels[rest], features[index], k=3, temperature=0.1)
        for index, rest in enumerate(others)
    ]
    assert result.predictions.tolist() == expected


def test_linear_probe_is_where_the_penalised_cross_entropy_is_flat() -> None:
    """The objective is convex, so a point without gradient is its optimum."""
    features, labels = clusters(num_images=300, seed=0)
    l2 = 1e-2
    probe = fit_linear_probe(
        features, labels, validation_features_VR=features, validation_labels_V=labels, l2_grid=(l2,)
    )
    x_MR = ((features - features.mean(0)) / features.std(0)).astype(np.float64)
    weight_KR, bias_K = probe.weight.double().numpy(), probe.bias.double().numpy()
    logits_MK = x_MR @ weight_KR.T + bias_K
    shares_MK = np.exp(logits_MK) / np.exp(logits_MK).sum(axis=1, keepdims=True)
    surplus_MK = (shares_MK - np.eye(3)[labels]) / len(labels)
    np.testing.assert_allclose(surplus_MK.T @ x_MR + l2 * weight_KR, 0, atol=1e-4)
    np.testing.assert_allclose(surplus_MK.sum(axis=0), 0, atol=1e-4)
    assert np.abs(weight_KR).max() > 0.1


def test_linear_probe_keeps_the_penalty_that_does_best_on_the_validation_split() -> None:
    features, labels = clusters(num_images=60, seed=0, spread=2.0)
    held, held_labels = clusters(num_images=200, seed=1, spread=2.0)
    grid = (10.0, 1e-1, 1e-3, 1e-6)

    def fitted(*l2_grid: float) -> LinearProbe:
        return fit_linear_probe(
            features, labels, validation_features_VR=held, validation_labels_V=held_labels, l2_grid=l2_grid
        )

    chosen = fitted(*grid)
    alone = [fitted(l2).validation_accuracy for l2 in grid]
    assert chosen.validation_accuracy == pytest.approx(max(alone), abs=0.011)
    assert chosen.validation_accuracy == chosen.accuracy(held, held_labels)


@pytest.mark.slow
def test_linear_probe_is_deterministic_and_survives_dead_features() -> None:
    features, labels = clusters(num_images=60, seed=0)
    features[:, 3] = 1.0
    probes = [
        fit_linear_probe(features, labels, validation_features_VR=features, validation_labels_V=labels)
        for _ in range(2)
    ]
    assert torch.equal(probes[0].weight, probes[1].weight)
    assert probes[0].validation_accuracy > 0.8


def test_a_fraction_of_the_labels_is_all_that_a_probe_sees() -> None:
    features, labels = clusters(num_images=600, seed=0)
    held, held_labels = clusters(num_images=200, seed=1)

    def accuracy(labels_seen: Labels) -> float:
        return fit_on_fraction(
            features,
            labels_seen,
            fraction=0.1,
            key="digest",
            validation_features_VR=held,
            validation_labels_V=held_labels,
        ).validation_accuracy

    assert accuracy(labels) > 0.6


def test_a_probe_without_penalties_is_refused() -> None:
    features, labels = clusters(num_images=9, seed=0)
    with pytest.raises(ValueError, match="l2_grid is empty"):
        fit_linear_probe(features, labels, validation_features_VR=features, validation_labels_V=labels, l2_grid=())


class Recorder(nn.Module):
    """Averages pixels, with a norm whose statistics must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Dropout()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BR: Tensor = self.norm(x_BCHW).mean(dim=(2, 3))
        return h_BR


def test_features_are_those_of_evaluation_mode_and_leave_the_encoder_as_it_was() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    encoder = Recorder()
    encoder.frozen.eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    whole = extract_features(encoder, images, batch_size=4)
    np.testing.assert_allclose(whole, images.mean(axis=(1, 2)) / 255 / np.sqrt(1 + 1e-5), rtol=1e-5)
    parts = [extract_features(encoder, images, batch_size=3, start=a, stop=b) for a, b in ((0, 5), (5, 10))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)
    assert encoder.training
    assert encoder.norm.training
    assert not encoder.frozen.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_features_follow_the_encoders_own_type_and_come_out_as_float32() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert extract_features(Recorder().double(), images).dtype == np.float32
    assert extract_features(Recorder(), images, autocast_dtype=torch.bfloat16).dtype == np.float32


def test_features_of_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images\[1:1\] is empty"):
        extract_features(Recorder(), np.zeros((2, 4, 4, 3), np.uint8), start=1, stop=1)


def test_each_transformation_is_what_its_name_says() -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 6, 6, 3), np.uint8)
    for task in TRANSFORMATION_TASKS:
        shown, forms = transformed(images, task=task, stream=0)
        np.testing.assert_array_equal(shown, transformed(images, task=task, stream=0)[0])
        np.testing.assert_array_equal(shown[forms == 0], images[forms == 0])
        changed = shown[forms == 1]
        if task == "colour_vs_grey":
            assert (changed[..., :1] == changed).all()
            assert 0.7 < (forms == 0).mean() < 0.9
        elif task == "rotation":
            for turns in range(4):
                np.testing.assert_array_equal(shown[forms == turns], np.rot90(images[forms == turns], turns, (1, 2)))
        else:
            assert (changed != images[forms == 1]).mean() > 0.5


def test_sobel_marks_an_edge_and_nothing_else() -> None:
    images = np.zeros((50, 8, 8, 3), np.uint8)
    images[:, :, 4:] = 255
    shown, forms = transformed(images, task="original_vs_sobel", stream=0)
    edges = shown[forms == 1]
    assert (edges[:, :, 3:5] == 255).all()
    assert (edges[:, :, [0, 1, 2, 5, 6, 7]] == 0).all()


@pytest.mark.slow
def test_pixels_tell_transformations_that_change_them() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(100, 156, (300, 4, 4, 3)).astype(np.uint8)
    images[:, 0] = generator.integers(200, 256, (300, 1, 1), np.uint8)  # bright on top, so that up is known
    results = predict_transformations(
        pixel_features, train_images_MHWC=images[:200], validation_images_VHWC=images[200:]
    )
    assert set(results) == set(TRANSFORMATION_TASKS)
    assert results["rotation"].accuracy == 1.0
    assert results["rotation"].chance < 0.4
    assert results["colour_vs_grey"].chance > 0.7


def test_pixels_of_more_images_than_memory_holds_are_averaged_over_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), np.uint8)
    assert pixel_pooling(len(images), 8) == 1
    np.testing.assert_array_equal(pixel_features(images), images.reshape(600, -1).astype(np.float32) / np.float32(255))
    monkeypatch.setattr(features, "MAX_PIXEL_BYTES", 600 * 2 * 2 * 3 * 4)
    assert pixel_pooling(len(images), 8) == 3  # 2x2 squares of 3 pixels; the last two rows and columns are cut off
    coarse = pixel_features(images, pooling=3).reshape(600, 2, 2, 3)
    np.testing.assert_allclose(coarse[599, 1, 0], images[599, 3:6, :3].mean(axis=(0, 1)) / 255, rtol=1e-6)
    assert pixel_pooling(10**9, 8) == 8
