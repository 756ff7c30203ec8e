"""What a run leaves behind: the encoder bundle, and pictures that a person can look at."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trainer import metric_names
from trainer.code_version import CODE_VERSION
from trainer.data.dataset import Dataset
from trainer.encoder import Encoder
from trainer.evaluation import FinalEvaluation
from trainer.export import write_bundle
from trainer.gallery import neighbours_grid
from trainer.model_registry import ENCODER_FOLDER
from trainer.scribe import Scribe
from trainer.spec import PretrainSpec
from trainer.views import ViewDrawer, preview_grid

__all__ = ["leave_products"]

BUNDLE_NAME: Final = "encoder.zip"
NUM_PREVIEWED: Final = 8
NUM_QUERIES: Final = 8


def leave_products(
    scribe: Scribe,
    *,
    spec: PretrainSpec,
    dataset: Dataset,
    encoder: Encoder,
    final: FinalEvaluation,
    drawer: ViewDrawer,
) -> dict[str, Any]:
    """Write the bundle and the pictures, and return what the completion marker says of them and of the encoder."""
    bundle = write_bundle(
        encoder,
        spec=spec,
        width_of_h=encoder.width_of_h,
        metrics=final.metrics,
        dataset_digest=dataset.digest,
        code_version=CODE_VERSION,
        class_names=dataset.class_names,
        extra={"verdict": final.verdict},
    )
    key = scribe.product(BUNDLE_NAME, bundle)
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        for name in archive.namelist():
            scribe.artifact(f"{ENCODER_FOLDER}/{name}", archive.read(name))
    for name, picture in _pictures(scribe, dataset, final, drawer):
        scribe.artifact(f"pictures/{name}.png", picture)
    bundle_sha256 = hashlib.sha256(bundle).hexdigest()
    if scribe.context.is_only_trial:  # of a sweep's trials the driver knows the best
        scribe.encoder(bundle_sha256)
    return {
        "bundle": key,
        "bundle_sha256": bundle_sha256,
        "bundle_bytes": len(bundle),
        "encoder_digest": final.encoder_digest,
        "verdict": final.verdict,
        "paired_p": final.paired_p,
    }


def _pictures(
    scribe: Scribe, dataset: Dataset, final: FinalEvaluation, drawer: ViewDrawer
) -> Iterator[tuple[str, bytes]]:
    yield "views", _png(_preview(dataset, drawer))
    yield "neighbours", _png(_neighbours(dataset, final))
    if scribe.context.is_only_trial:  # a sweep's are compared in its report and in MLflow, which draws curves
        yield from _drawings(scribe, dataset, final)


def _drawings(scribe: Scribe, dataset: Dataset, final: FinalEvaluation) -> Iterator[tuple[str, bytes]]:
    from trainer.pictures import confusion_png, curve_png, embedding_png  # matplotlib takes a second

    series = scribe.series(metric_names.LOSS, metric_names.KNN_ACCURACY)
    yield "loss", curve_png({"loss": series[metric_names.LOSS]}, title="Loss", y_label="loss")
    if series[metric_names.KNN_ACCURACY]:
        baselines = {
            "raw pixels": final.metrics[metric_names.RAW_PIXEL_KNN_ACCURACY],
            "untrained encoder": final.metrics[metric_names.RANDOM_ENCODER_KNN_ACCURACY],
        }
        yield (
            "knn_accuracy",
            curve_png(
                {"h": series[metric_names.KNN_ACCURACY]}, title="kNN accuracy of h", y_label="0..1", baselines=baselines
            ),
        )
    labels = dataset.validation.labels
    yield "embedding", embedding_png(final.validation_h, labels, dataset.class_names)
    if final.predictions is not None and labels is not None and dataset.class_names is not None:
        yield "confusion", confusion_png(labels, final.predictions, dataset.class_names)


def _preview(dataset: Dataset, drawer: ViewDrawer) -> NDArray[np.uint8]:
    positions = np.arange(min(NUM_PREVIEWED, len(dataset.pretrain)))
    return preview_grid(
        torch.from_numpy(dataset.pretrain.take(positions)),
        drawer,
        sample_ids_B=torch.from_numpy(dataset.pretrain.sample_ids[positions]),
        epoch=0,
    )


def _png(image_HWC: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="png")
    return buffer.getvalue()


def _neighbours(dataset: Dataset, final: FinalEvaluation) -> NDArray[np.uint8]:
    positions = np.linspace(0, len(dataset.validation) - 1, min(NUM_QUERIES, len(dataset.validation))).astype(np.int64)
    return neighbours_grid(
        dataset.validation.take(positions),
        final.validation_h[positions],
        bank_images_MHWC=dataset.pretrain,
        bank_features_MR=final.pretrain_h,
    )
