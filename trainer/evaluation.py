"""What a run measures of its encoder: online while it trains, and once at its end.

Representations are computed by all ranks, a slice each, and judged by rank 0. kNN asks how well
an image's class is told by its neighbours: leaving one out over all images that are not test
images where they are few (a validation split of 200 has a standard error of 3 points), else from
the pretraining split to the validation split. Baselines and encoder are judged on the same images.
The test split is read once, at the end, and selects nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from trainer import metric_names as names
from trainer.data.dataset import Dataset, Subset
from trainer.data.split import labelled_fraction
from trainer.divergence import require_finite
from trainer.encoder import Encoder, build_encoder
from trainer.export import weights_digest
from trainer.fine_tuning import fine_tune
from trainer.learner import SimclrLearner, SupervisedLearner
from trainer.precision import Precision
from trainer.probe.features import Images, evaluating, extract_features, pixel_features, pixel_pooling
from trainer.probe.knn import KNN_TEMPERATURE, KnnResult, knn_probe
from trainer.probe.linear import LinearProbe, fit_linear_probe, fit_on_fraction
from trainer.probe.monitors import Spread, alignment, effective_rank, has_collapsed, mean_std, spread, uniformity
from trainer.probe.paired import mcnemar
from trainer.probe.transformation import predict_transformations
from trainer.spec import PretrainSpec
from trainer.team import Team
from trainer.views import ViewDrawer

__all__ = ["Evaluation", "FinalEvaluation"]

logger = logging.getLogger(__name__)

Features = NDArray[np.float32]
Labels = NDArray[np.int64]

LEAVE_ONE_OUT_AT_MOST: Final = 20_000  # images; beyond, a validation split is large enough by itself
NUM_MONITORED: Final = 512  # validation images that the collapse monitors look at
KNN_METRICS: Final = {20: names.KNN_ACCURACY, 200: names.KNN_ACCURACY_K200}
LABEL_FRACTIONS: Final = {0.01: names.LINEAR_ACCURACY_1PCT, 0.1: names.LINEAR_ACCURACY_10PCT}
FINE_TUNED: Final = {  # share of the labels: metric, epochs (paper, appendix B.5; of all labels: SimCLR v2, section 3)
    0.01: (names.FINE_TUNED_ACCURACY_1PCT, 60),
    0.1: (names.FINE_TUNED_ACCURACY_10PCT, 30),
    1.0: (names.FINE_TUNED_ACCURACY, 30),
}


@dataclass(frozen=True, kw_only=True)
class FinalEvaluation:
    """What rank 0 knows at the end of a run."""

    metrics: dict[str, float]
    encoder_digest: str
    pretrain_h: Features
    validation_h: Features
    predictions: Labels | None  # of the linear probe, for the validation split
    verdict: str  # has h collapsed, does it beat both baselines, in words
    paired_p: dict[str, float]  # metric of a baseline -> McNemar's mid-p of h against it on the same images


class Evaluation:
    """Measures one learner on one data set; every method is called by all ranks together."""

    def __init__(self, spec: PretrainSpec, dataset: Dataset, team: Team, precision: Precision) -> None:
        self._spec = spec
        self._dataset = dataset
        self._team = team
        self._precision = precision
        self._untrained_spread: Spread | None = None
        self._has_warned = False

    # --- while it trains --------------------------------------------------------------------------

    def online(self, learner: SimclrLearner | SupervisedLearner) -> dict[str, float]:
        """Return kNN accuracy and collapse monitors; on ranks but the first, {}."""
        pretrain_h = self._features(learner.encoder, self._dataset.pretrain)
        validation_h = self._features(learner.encoder, self._dataset.validation)
        metrics: dict[str, float] = {}
        if self._team.is_first:
            metrics = self._knn_metrics(self._knn(pretrain_h, validation_h)) | self._monitors(learner, validation_h)
        self._team.meet()  # neighbours among millions of images take long, and a step would not wait for rank 0
        return metrics

    def _monitors(self, learner: SimclrLearner | SupervisedLearner, validation_h: Features) -> dict[str, float]:
        h_MR = torch.from_numpy(validation_h)
        metrics = {
            names.H_STD: mean_std(h_MR),
            names.H_EFFECTIVE_RANK: effective_rank(h_MR),
            names.H_COLLAPSED: float(self._has_collapsed(h_MR)),
        }
        if isinstance(learner, SimclrLearner):
            positions = np.arange(min(NUM_MONITORED, len(self._dataset.validation)))
            drawer = ViewDrawer(
                self._spec.views,
                image_size=self._spec.data.image_size,
                seed=self._spec.seed,
                dtype=self._precision.dtype,
                channels_last=self._spec.channels_last,
            )
            images_BHWC = torch.from_numpy(self._dataset.validation.take(positions)).to(self._team.device)
            ids_B = torch.from_numpy(self._dataset.validation.sample_ids[positions])
            with evaluating(learner), torch.inference_mode(), self._precision.autocast():
                z_2BD = learner.outputs(drawer.draw_pair(images_BHWC, sample_ids_B=ids_B, epoch=0)).float().cpu()
            metrics[names.ALIGNMENT] = alignment(z_2BD)
            if len(positions) > 1:  # one image has no other to be far from
                metrics[names.UNIFORMITY] = uniformity(z_2BD)
        return metrics

    def _has_collapsed(self, h_MR: torch.Tensor) -> bool:
        """Judge h of the first images of the validation split against the untrained encoder's; warn once a run."""
        count = min(NUM_MONITORED, len(h_MR))
        if self._untrained_spread is None:
            untrained_h = self._extract(self._untrained_encoder(), self._dataset.validation, slice(0, count))
            self._untrained_spread = spread(torch.from_numpy(untrained_h))
        trained = spread(h_MR[:count])
        is_collapsed = has_collapsed(trained, untrained=self._untrained_spread)
        if is_collapsed and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "h has collapsed: its standard deviation is %.2g and its effective rank %.3g, of the untrained encoder "
                "%.2g and %.3g; lower optim.base_lr, lengthen optim.warmup_epochs, or strengthen the views",
                *trained,
                *self._untrained_spread,
            )
        return is_collapsed

    # --- at the end -------------------------------------------------------------------------------

    def final(
        self, learner: SimclrLearner | SupervisedLearner, *, wishes_stop: Callable[[], bool] = lambda: False
    ) -> FinalEvaluation | None:
        """Return all that is measured once; None on ranks but the first.

        Raises:
            Interrupted: If a rank wished to stop while the encoder's copy was fine-tuned.
        """
        digest_before = weights_digest(learner.encoder)
        learner.zero_grad(set_to_none=True)  # room for the copy that is fine-tuned
        h = self._of_both(learner.encoder)
        random_h = self._of_both(self._untrained_encoder())
        fine_tuned, tuned_metrics = self._fine_tuned(learner.encoder, wishes_stop)
        if not self._team.is_first:
            return None
        is_collapsed = self._has_collapsed(torch.from_numpy(h[1]))
        metrics: dict[str, float] = {names.H_COLLAPSED: float(is_collapsed)}
        verdict, predictions = "the data set has no labels to judge h by", None
        paired_p: dict[str, float] = {}
        if self._dataset.pretrain.labels is not None:
            baselines, verdict, paired_p = self._against_baselines(h, random_h)
            metrics |= baselines | tuned_metrics
            probe = self._probe(*h) if self._spec.evaluation.linear_probe else None
            if probe is not None:
                predictions = probe.predict(h[1])
                metrics[names.LINEAR_ACCURACY] = probe.validation_accuracy
            metrics |= self._test(learner.encoder, h, probe, fine_tuned)
            metrics |= self._optional(learner, h)
        if weights_digest(learner.encoder) != digest_before:
            raise RuntimeError("evaluation changed the encoder")
        return FinalEvaluation(
            metrics=metrics,
            encoder_digest=digest_before,
            pretrain_h=h[0],
            validation_h=h[1],
            predictions=predictions,
            verdict=f"h has collapsed; {verdict}" if is_collapsed else verdict,
            paired_p=paired_p,
        )

    def _against_baselines(
        self, h: tuple[Features, Features], random_h: tuple[Features, Features]
    ) -> tuple[dict[str, float], str, dict[str, float]]:
        """Return the accuracies of h and both baselines on the same images, and a paired verdict with its p."""
        # A data set may be larger than memory, and so are its pixels then: coarser ones take their place.
        pooling = pixel_pooling(self._dataset.num_train, self._dataset.image_size)
        pretrain, validation = (
            pixel_features(subset, pooling=pooling) for subset in (self._dataset.pretrain, self._dataset.validation)
        )
        pixels = (pretrain, validation)
        trained, random, raw = (self._knn(*features) for features in (h, random_h, pixels))
        metrics = self._knn_metrics(trained)
        metrics[names.RANDOM_ENCODER_KNN_ACCURACY] = random[20].accuracy
        metrics[names.RAW_PIXEL_KNN_ACCURACY] = raw[20].accuracy
        labels = self._query_labels()
        words, paired_p = [], {}
        for name, metric, baseline in (
            ("raw pixels", names.RAW_PIXEL_KNN_ACCURACY, raw),
            ("the untrained encoder", names.RANDOM_ENCODER_KNN_ACCURACY, random),
        ):
            test = mcnemar(trained[20].predictions, baseline[20].predictions, labels=labels)
            paired_p[metric] = test.p_mid
            better = trained[20].accuracy > baseline[20].accuracy
            words.append(f"{'beats' if better else 'does not beat'} {name} (paired p = {test.p_mid:.2g})")
        bank = "each told by the others" if self._leaves_one_out else f"told by the {len(h[0])} pretrained on"
        settings = f"k = {trained[20].k}, temperature {KNN_TEMPERATURE}, {bank}"
        return metrics, f"kNN of h {' and '.join(words)} on {len(labels)} images ({settings})", paired_p

    def _optional(self, learner: SimclrLearner | SupervisedLearner, h: tuple[Features, Features]) -> dict[str, float]:
        """Return what the spec asks for beyond the usual: label fractions, z, transformations."""
        asked, metrics = self._spec.evaluation, {}
        if asked.label_fractions:
            for fraction, name in LABEL_FRACTIONS.items():
                probe = fit_on_fraction(
                    h[0],
                    self._labels(self._dataset.pretrain),
                    fraction=fraction,
                    key=self._dataset.digest,
                    validation_features_VR=h[1],
                    validation_labels_V=self._labels(self._dataset.validation),
                )
                metrics[name] = probe.validation_accuracy
        sources: dict[str, nn.Module] = {"h": learner.encoder}
        if asked.probe_z and isinstance(learner, SimclrLearner):
            sources["z"] = nn.Sequential(learner.encoder, learner.head)
            z = tuple(
                self._extract(sources["z"], subset, slice(0, len(subset)))
                for subset in (self._dataset.pretrain, self._dataset.validation)
            )
            metrics[names.LINEAR_ACCURACY_Z] = self._probe(z[0], z[1]).validation_accuracy
        if asked.transformation_prediction:
            for source, module in sources.items():
                results = predict_transformations(
                    partial(self._extract_all, module),
                    train_images_MHWC=self._dataset.pretrain.images,
                    validation_images_VHWC=self._dataset.validation.images,
                )
                metrics |= {names.transformation_accuracy(task, source): r.accuracy for task, r in results.items()}
        return metrics

    def _fine_tuned(
        self, encoder: Encoder, wishes_stop: Callable[[], bool]
    ) -> tuple[nn.Module | None, dict[str, float]]:
        """Return the network fine-tuned on all labels, and the accuracies; (None, {}) if not asked for."""
        asked, pretrain = self._spec.evaluation, self._dataset.pretrain
        if not asked.fine_tune or pretrain.labels is None:
            return None, {}
        network: nn.Module | None = None
        metrics: dict[str, float] = {}
        for fraction, (name, epochs) in FINE_TUNED.items():
            if fraction < 1 and not asked.label_fractions:
                continue
            network = None  # let go of before the next is made
            network = fine_tune(
                encoder,
                pretrain if fraction == 1 else self._labelled_part(fraction),
                self._spec,
                num_classes=self._dataset.num_classes,
                epochs=asked.fine_tune_epochs or epochs,
                team=self._team,
                precision=self._precision,
                wishes_stop=wishes_stop,
            )
            # by all ranks: those that began the next one meanwhile would wait for the first, and not for ever
            logits_VK = self._shared(network, self._dataset.validation, width=self._dataset.num_classes)
            metrics[name] = self._accuracy(logits_VK, self._dataset.validation)
        return network, metrics

    def _labelled_part(self, fraction: float) -> Subset:
        pretrain = self._dataset.pretrain
        return pretrain.part(labelled_fraction(self._labels(pretrain), fraction=fraction, key=self._dataset.digest))

    def _accuracy(self, logits_MK: Features, subset: Subset) -> float:
        """Return the share of images whose class has the highest logit."""
        return float((logits_MK.argmax(axis=1) == self._labels(subset)).mean())

    def _test(
        self,
        encoder: Encoder,
        h: tuple[Features, Features],
        probe: LinearProbe | None,
        fine_tuned: nn.Module | None,
    ) -> dict[str, float]:
        """Read the test split, once and if there is a classifier; nothing is chosen by what comes of it."""
        has_classifier = probe is not None or fine_tuned is not None
        test = self._dataset.read_test() if has_classifier else None
        if test is None or test.labels is None:
            return {}
        test_h = self._extract(encoder, test, slice(0, len(test)))
        bank_labels = np.concatenate([self._labels(self._dataset.pretrain), self._labels(self._dataset.validation)])
        knn = knn_probe(np.concatenate(h), bank_labels, test_h, test.labels, ks=(20,))
        metrics = {names.TEST_KNN_ACCURACY: knn[20].accuracy}
        if probe is not None:
            metrics[names.TEST_LINEAR_ACCURACY] = probe.accuracy(test_h, test.labels)
        if fine_tuned is not None:
            logits_MK = self._extract(fine_tuned, test, slice(0, len(test)))
            metrics[names.TEST_FINE_TUNED_ACCURACY] = self._accuracy(logits_MK, test)
        return metrics

    # --- pieces -----------------------------------------------------------------------------------

    @property
    def _leaves_one_out(self) -> bool:
        # A supervised encoder has seen the labels of the pretraining split: only others can judge it.
        return self._spec.method == "simclr" and self._dataset.num_train <= LEAVE_ONE_OUT_AT_MOST

    def _knn(self, pretrain: Features, validation: Features) -> dict[int, KnnResult]:
        if self._dataset.pretrain.labels is None:
            return {}
        labels = self._labels(self._dataset.pretrain)
        if not self._leaves_one_out:
            return knn_probe(pretrain, labels, validation, self._query_labels())
        features, all_labels = np.concatenate([pretrain, validation]), self._query_labels()
        return knn_probe(features, all_labels, features, all_labels, leaves_self_out=True)

    def _query_labels(self) -> Labels:
        validation = self._labels(self._dataset.validation)
        return (
            np.concatenate([self._labels(self._dataset.pretrain), validation]) if self._leaves_one_out else validation
        )

    @staticmethod
    def _knn_metrics(results: dict[int, KnnResult]) -> dict[str, float]:
        return {KNN_METRICS[k]: result.accuracy for k, result in results.items()}

    def _probe(self, pretrain: Features, validation: Features) -> LinearProbe:
        return fit_linear_probe(
            pretrain,
            self._labels(self._dataset.pretrain),
            validation_features_VR=validation,
            validation_labels_V=self._labels(self._dataset.validation),
        )

    @staticmethod
    def _labels(subset: Subset) -> Labels:
        if subset.labels is None:
            raise ValueError("this measure needs labels")
        return subset.labels

    def _untrained_encoder(self) -> Encoder:
        encoder = build_encoder(self._spec.encoder, seed=self._spec.seed)
        return encoder.to(device=self._team.device, dtype=self._precision.dtype)

    def _of_both(self, encoder: Encoder) -> tuple[Features, Features]:
        return self._features(encoder, self._dataset.pretrain), self._features(encoder, self._dataset.validation)

    def _features(self, encoder: Encoder, subset: Subset) -> Features:
        """Return h of a whole subset on every rank; raise NonFiniteH on every rank where it is not finite."""
        return require_finite(self._shared(encoder, subset, width=encoder.width_of_h))

    def _shared(self, module: nn.Module, subset: Subset, *, width: int) -> Features:
        """Return a module's outputs, `width` wide, of a whole subset on every rank, each having computed its slice."""
        share = self._team.share(len(subset))
        mine = self._extract(module, subset, share, width=width)
        if self._team.group is None:
            return mine
        size = -(-len(subset) // self._team.world_size)
        padded = torch.zeros(size, width, device=self._team.device)
        padded[: len(mine)] = torch.from_numpy(mine)
        gathered = [torch.empty_like(padded) for _ in range(self._team.world_size)]
        dist.all_gather(gathered, padded, group=self._team.group)
        lengths = (len(range(*self._share_of(rank, len(subset)))) for rank in range(self._team.world_size))
        return torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)]).cpu().numpy()

    def _share_of(self, rank: int, total: int) -> tuple[int, int]:
        share = Team(rank=rank, world_size=self._team.world_size).share(total)
        return share.start, share.stop

    def _extract_all(self, module: nn.Module, images_MHWC: NDArray[np.uint8]) -> Features:
        return self._extract(module, images_MHWC, slice(0, len(images_MHWC)))

    def _extract(self, module: nn.Module, images_MHWC: Images, share: slice, *, width: int = 0) -> Features:
        if share.start == share.stop:
            return np.zeros((0, width), np.float32)
        return extract_features(
            module,
            images_MHWC,
            device=self._team.device,
            autocast_dtype=torch.bfloat16 if self._precision.name == "bfloat16" else None,
            channels_last=self._spec.channels_last,
            start=share.start,
            stop=share.stop,
        )
