"""The pretraining spec: everything that decides what is computed, with every default's source.

A spec is frozen. Derived values (learning rate, warm-up, operations of a preset) are computed by
functions beside the fields they come from and never written back. `scaling` and `limits` decide
how fast and how long, never what: they are not part of `digest`.

Sources: "paper" is Chen et al. 2020 (arXiv 2002.05709), "B.9" its appendix.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ColorJitter",
    "CropResize",
    "Cutout",
    "DataSpec",
    "EncoderSpec",
    "EvaluationSpec",
    "GaussianBlur",
    "GaussianNoise",
    "Grayscale",
    "HorizontalFlip",
    "LimitsSpec",
    "LossSpec",
    "MemorySpec",
    "Operation",
    "OptimSpec",
    "PretrainSpec",
    "ProjectionHeadSpec",
    "Rotation",
    "ScalingSpec",
    "Sobel",
    "SpecProblem",
    "ViewsSpec",
    "WorkerRange",
    "has_batch_norm",
    "spec_problems",
]

MAX_WORKERS = 1024
MAX_BATCH_SIZE = 1_048_576
MAX_EPOCHS = 100_000
MAX_IMAGE_SIZE = 1024

Probability = Annotated[float, Field(ge=0, le=1)]
Branch = Literal["both", "first", "second"]


class Part(BaseModel):
    """A frozen part of a spec: unknown keys, wrong types, NaN and infinities are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# --- views: the operations of the paper's Fig. 4, in the order they are applied -------------------


class _Operation(Part):
    branch: Branch = "both"  # "first" alone is the asymmetric set-up of the paper's section 3.1


class CropResize(_Operation):
    """Crop a random area and aspect ratio and resize it to the image size (paper, appendix A)."""

    op: Literal["crop_resize"] = "crop_resize"
    scale: Annotated[tuple[float, float], Field(strict=False)] = (0.08, 1.0)  # appendix A
    ratio: Annotated[tuple[float, float], Field(strict=False)] = (0.75, 1.3333333333333333)  # appendix A
    p: Probability = 1.0


class HorizontalFlip(_Operation):
    """Mirror left and right (paper, appendix A)."""

    op: Literal["horizontal_flip"] = "horizontal_flip"
    p: Probability = 0.5  # appendix A


class ColorJitter(_Operation):
    """Brightness, contrast, saturation 0.8 s and hue 0.2 s, in random order (paper, appendix A)."""

    op: Literal["color_jitter"] = "color_jitter"
    strength: float = Field(1.0, ge=0, le=2)  # s of appendix A
    p: Probability = 0.8  # appendix A


class Grayscale(_Operation):
    """Drop colour, keeping three equal channels (paper, appendix A)."""

    op: Literal["grayscale"] = "grayscale"
    p: Probability = 0.2  # appendix A


class GaussianBlur(_Operation):
    """Blur with a kernel of a tenth of the side (paper, appendix A)."""

    op: Literal["gaussian_blur"] = "gaussian_blur"
    kernel_ratio: float = Field(0.1, gt=0, le=1)  # appendix A
    sigma: Annotated[tuple[float, float], Field(strict=False)] = (0.1, 2.0)  # appendix A, pixels
    p: Probability = 0.5  # appendix A


class Cutout(_Operation):
    """Set a random square to grey (paper, Fig. 4; DeVries and Taylor 2017)."""

    op: Literal["cutout"] = "cutout"
    size_ratio: float = Field(0.5, gt=0, le=1)  # 16 of 32 pixels, DeVries and Taylor 2017
    p: Probability = 1.0


class Rotation(_Operation):
    """Turn by 0, 90, 180 or 270 degrees (paper, Fig. 4)."""

    op: Literal["rotation"] = "rotation"
    p: Probability = 1.0


class GaussianNoise(_Operation):
    """Add independent noise to each pixel and channel (paper, Fig. 4)."""

    op: Literal["gaussian_noise"] = "gaussian_noise"
    std: float = Field(0.1, ge=0, le=1)  # ours: the paper names none
    p: Probability = 1.0


class Sobel(_Operation):
    """Replace the image by the magnitude of its Sobel gradient (paper, Fig. 4)."""

    op: Literal["sobel"] = "sobel"
    p: Probability = 1.0


Operation = Annotated[
    CropResize | HorizontalFlip | ColorJitter | Grayscale | GaussianBlur | Cutout | Rotation | GaussianNoise | Sobel,
    Field(discriminator="op"),
]


class ViewsSpec(Part):
    """How a view is drawn: a preset, or an ordered list of operations that replaces it."""

    preset: Literal["simclr", "simclr-cifar"] = "simclr-cifar"  # B.9, as image_size is CIFAR's
    color_strength: float | None = Field(None, ge=0, le=2)  # None: the preset's s (1 | 0.5)
    blur: bool | None = None  # None: the preset's (on | off)
    operations: Annotated[tuple[Operation, ...], Field(strict=False, max_length=32)] | None = None

    def resolved_operations(self) -> tuple[Operation, ...]:
        """Return the operations in force (paper, appendix A; B.9 for `simclr-cifar`)."""
        if self.operations is not None:
            return self.operations
        is_cifar = self.preset == "simclr-cifar"
        strength = self.color_strength if self.color_strength is not None else (0.5 if is_cifar else 1.0)
        has_blur = self.blur if self.blur is not None else not is_cifar
        base = (CropResize(), HorizontalFlip(), ColorJitter(strength=strength), Grayscale())
        return (*base, GaussianBlur()) if has_blur else base


# --- what is trained ------------------------------------------------------------------------------


class DataSpec(Part):
    """Which images: the id of a registered data set, never a URL or a path."""

    dataset: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    image_size: int = Field(32, ge=8, le=MAX_IMAGE_SIZE)  # pixels a side; B.9
    validation_ratio: float = Field(0.1, gt=0, lt=0.9)  # of the training set, stratified; ours


class EncoderSpec(Part):
    """f: a ResNet (paper, section 2.1) or the CIFAR family of He et al. 2016, section 4.2."""

    name: Literal["resnet8", "resnet14", "resnet20", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = (
        "resnet18"  # B.9 uses ResNet-50; ours is the smallest of its family
    )
    stem: Literal["cifar", "imagenet"] = "cifar"  # B.9
    width: Literal[1, 2, 4] = 1  # paper, Fig. 7
    norm: Literal["batch", "group"] = "batch"


class ProjectionHeadSpec(Part):
    """g: z = g(h) (paper, section 4.2)."""

    kind: Literal["none", "linear", "nonlinear"] = "nonlinear"  # section 4.2
    dim: int = Field(128, ge=1, le=65_536)  # D; section 2.1
    num_layers: int = Field(2, ge=2, le=8)  # of the nonlinear head; section 2.1
    hidden_dim: int | None = Field(None, ge=1, le=65_536)  # None: the width of h, as in section 2.1
    batch_norm: bool = True  # as the paper's reference code


class LossSpec(Part):
    """The contrastive objective (paper, Tables 2, 4 and 5)."""

    kind: Literal["nt_xent", "nt_logistic", "margin"] = "nt_xent"
    temperature: float = Field(0.5, gt=0, le=1000)  # B.9, and Table 5 for its place
    normalize: bool = True  # Table 5
    semi_hard: bool = False  # Table 4; of nt_logistic and margin only
    margin: float = Field(0.8, gt=0, le=1000)  # ours: the paper names none


class OptimSpec(Part):
    """The optimiser and its schedule (paper, sections 2.2 and B.1)."""

    kind: Literal["lars", "sgd", "adamw"] = "lars"  # section 2.2
    base_lr: float = Field(0.3, gt=0, le=1000)  # section 2.2
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"  # section 2.2; sqrt: B.1
    weight_decay: float = Field(1e-6, ge=0, le=1)  # section 2.2
    momentum: float = Field(0.9, ge=0, lt=1)  # the paper's reference code
    trust_coefficient: float = Field(0.001, gt=0, le=1)  # You et al. 2017, and the reference code
    warmup_epochs: float | None = Field(None, ge=0)  # None: min(10, epochs // 10); section 2.2


class MemorySpec(Part):
    """Ways to fit a large global batch in less memory; both are exact."""

    micro_batch: int | None = Field(None, ge=1, le=MAX_BATCH_SIZE)  # images a forward pass holds
    activation_checkpointing: bool = False


class EvaluationSpec(Part):
    """What is measured on h; the last epoch is always evaluated (paper, section 2.3)."""

    knn_every_epochs: int = Field(5, ge=0, le=MAX_EPOCHS)  # 0: only at the end
    linear_probe: bool = True  # section 2.3
    probe_z: bool = False  # section 4.2: h against g(h)
    label_fractions: bool = False  # 1 % and 10 % of the labels; section 6
    transformation_prediction: bool = False  # Table 3
    fine_tune: bool = Field(
        False,
        description=(
            "Also train a copy of the encoder and a linear layer on the labels, as the paper's appendix B.5 does: all "
            "of them outside the validation split and, with label_fractions, 1 % and 10 %. A start that is cut "
            "off meanwhile begins this anew."
        ),
    )
    fine_tune_base_lr: float = Field(
        0.05, gt=0, le=1000, description="The rate is fine_tune_base_lr * batch_size / 256, by a cosine to 0; B.5."
    )
    fine_tune_epochs: int | None = Field(
        None,
        ge=1,
        le=MAX_EPOCHS,
        description="null: 60 on 1 % of the labels, 30 on 10 %; B.5. On all of them 30, as SimCLR v2, section 3.",
    )


class WorkerRange(Part):
    """Between `min` and `max` workers, as many as the cluster has; the result is the same."""

    min: int = Field(ge=1, le=MAX_WORKERS)
    max: int = Field(ge=1, le=MAX_WORKERS)


class ScalingSpec(Part):
    """How fast, never what: the trajectory is the same for every number of workers."""

    num_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | WorkerRange = 1
    cpus_per_worker: int = Field(1, ge=1, le=256)
    gpus_per_worker: int = Field(0, ge=0, le=1)
    # pack: on few nodes; spread: on many, as far as there is room; strict_spread: each on a node of its own, or wait.
    placement: Literal["pack", "spread", "strict_spread"] = "pack"  # Ray's own default

    def max_workers(self) -> int:
        """Return the largest W that may be used."""
        return self.num_workers.max if isinstance(self.num_workers, WorkerRange) else self.num_workers

    def min_workers(self) -> int:
        """Return the smallest W that may be used."""
        return self.num_workers.min if isinstance(self.num_workers, WorkerRange) else self.num_workers


class LimitsSpec(Part):
    """What an experiment may cost; refused at POST where known, enforced while it runs."""

    wall_time_s: int = Field(604_800, ge=1, le=31_536_000)
    max_attempts: int = Field(3, ge=1, le=100)
    max_images: int | None = Field(None, ge=1)


class PretrainSpec(Part):
    """One pretraining: a pure function of this, the data and the seed."""

    method: Literal["simclr", "supervised"] = "simclr"
    data: DataSpec
    views: ViewsSpec = ViewsSpec()
    encoder: EncoderSpec = EncoderSpec()
    projection_head: ProjectionHeadSpec = ProjectionHeadSpec()
    loss: LossSpec = LossSpec()
    optim: OptimSpec = OptimSpec()
    batch_size: int = Field(256, ge=2, le=MAX_BATCH_SIZE)  # N, over all workers; smallest of B.1
    epochs: int = Field(100, ge=1, le=MAX_EPOCHS)  # section 2.2
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Literal["auto", "float64", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    memory: MemorySpec = MemorySpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    scaling: ScalingSpec = ScalingSpec()
    limits: LimitsSpec = LimitsSpec()

    def warmup_epochs(self) -> float:
        """Return the warm-up in epochs: the spec's own, or min(10, epochs // 10) (section 2.2)."""
        explicit = self.optim.warmup_epochs
        return explicit if explicit is not None else float(min(10, self.epochs // 10))

    def peak_lr(self) -> float:
        """Return the learning rate after warm-up, from the global N (sections 2.2 and B.1)."""
        factor = {"linear": self.batch_size / 256, "sqrt": math.sqrt(self.batch_size), "none": 1.0}
        return self.optim.base_lr * factor[self.optim.lr_scaling]

    def fine_tune_lr(self) -> float:
        """Return the first learning rate of fine-tuning, from the global N (appendix B.5)."""
        return self.evaluation.fine_tune_base_lr * self.batch_size / 256

    def resolved(self) -> dict[str, Any]:
        """Return the spec as it will run, as JSON: every default and derived value spelled out."""
        document = self.model_dump(mode="json")
        document["optim"]["warmup_epochs"] = self.warmup_epochs()
        operations = [op.model_dump(mode="json") for op in self.views.resolved_operations()]
        document["views"].update(operations=operations, color_strength=None, blur=None)
        return document

    def digest(self) -> str:
        """Return the sha256 of all that decides the result: `scaling` and `limits` do not."""
        document = self.resolved()
        del document["scaling"], document["limits"]
        if not self.evaluation.fine_tune:  # a run without it is the run that it was before there was fine-tuning
            for field in ("fine_tune", "fine_tune_base_lr", "fine_tune_epochs"):
                del document["evaluation"][field]
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


# --- what single fields cannot say ----------------------------------------------------------------


class SpecProblem(BaseModel):
    """One thing that is wrong with a spec, where, what is allowed and how to mend it."""

    model_config = ConfigDict(frozen=True)

    pointer: str  # JSON pointer into the pretrain spec
    code: str
    detail: str
    allowed: Any = None
    involves: tuple[str, ...] = ()  # other pointers the judgement rests on


def has_batch_norm(spec: PretrainSpec) -> bool:
    """Return whether images of a batch see each other in f or g, so that it cannot be computed in parts."""
    head = spec.projection_head
    return spec.encoder.norm == "batch" or (head.kind == "nonlinear" and head.batch_norm)


def spec_problems(spec: PretrainSpec) -> list[SpecProblem]:
    """Return every impossible combination in `spec`, none hiding another; [] if it can run."""
    return [*_scaling_problems(spec), *_schedule_problems(spec), *_memory_problems(spec), *_method_problems(spec)]


def _scaling_problems(spec: PretrainSpec) -> list[SpecProblem]:
    problems: list[SpecProblem] = []
    num_workers = spec.scaling.num_workers
    if isinstance(num_workers, WorkerRange) and num_workers.min > num_workers.max:
        problems.append(
            SpecProblem(
                pointer="/scaling/num_workers/min",
                code="range_reversed",
                detail=f"min {num_workers.min} is above max {num_workers.max}; swap them",
                allowed=f"<= {num_workers.max}",
            )
        )
    if isinstance(num_workers, WorkerRange) and spec.scaling.placement == "strict_spread":
        problems.append(
            SpecProblem(
                pointer="/scaling/placement",
                code="range_strictly_spread",
                detail=(
                    "a range takes as many workers as there are CPUs for, whatever the number of nodes, and would wait "
                    "for nodes of their own; use spread, or give num_workers as a number"
                ),
                allowed=["pack", "spread"],
                involves=("/scaling/num_workers",),
            )
        )
    for workers in sorted({spec.scaling.min_workers(), spec.scaling.max_workers()}):
        if spec.batch_size % workers:
            below = spec.batch_size - spec.batch_size % workers
            problems.append(
                SpecProblem(
                    pointer="/batch_size",
                    code="batch_not_divisible",
                    detail=(
                        f"batch_size {spec.batch_size} cannot be shared evenly by {workers} workers; "
                        f"use a multiple of {workers} or a number of workers that divides it"
                    ),
                    allowed=[value for value in (below, below + workers) if value >= max(2, workers)],
                    involves=("/scaling/num_workers",),
                )
            )
    return problems


def _schedule_problems(spec: PretrainSpec) -> list[SpecProblem]:
    problems: list[SpecProblem] = []
    if spec.optim.warmup_epochs is not None and spec.optim.warmup_epochs >= spec.epochs:
        problems.append(
            SpecProblem(
                pointer="/optim/warmup_epochs",
                code="warmup_too_long",
                detail=(
                    f"warmup_epochs {spec.optim.warmup_epochs:g} leaves none of {spec.epochs} epochs to train at the "
                    "full rate; shorten it, or leave it out for min(10, epochs // 10)"
                ),
                allowed=f"< {spec.epochs}",
                involves=("/epochs",),
            )
        )
    return problems


def _memory_problems(spec: PretrainSpec) -> list[SpecProblem]:
    micro_batch = spec.memory.micro_batch
    if micro_batch is None:
        return []
    problems: list[SpecProblem] = []
    if has_batch_norm(spec):
        problems.append(
            SpecProblem(
                pointer="/memory/micro_batch",
                code="micro_batch_with_batch_norm",
                detail=(
                    "micro_batch with batch norm computes another function; use memory.activation_checkpointing "
                    "(exact with batch norm), or encoder.norm = group with projection_head.batch_norm = false"
                ),
                allowed=None,
                involves=("/encoder/norm", "/projection_head/batch_norm", "/projection_head/kind"),
            )
        )
    local = spec.batch_size // spec.scaling.min_workers()
    if micro_batch > local or local % micro_batch:
        problems.append(
            SpecProblem(
                pointer="/memory/micro_batch",
                code="micro_batch_not_divisor",
                detail=f"micro_batch {micro_batch} does not divide the {local} images of one worker",
                allowed=[size for size in (local, local // 2, local // 4) if size and local % size == 0],
                involves=("/batch_size", "/scaling/num_workers"),
            )
        )
    return problems


def _method_problems(spec: PretrainSpec) -> list[SpecProblem]:
    problems: list[SpecProblem] = []
    if spec.loss.semi_hard and spec.loss.kind == "nt_xent":
        problems.append(
            SpecProblem(
                pointer="/loss/semi_hard",
                code="semi_hard_without_pairs",
                detail="nt_xent weighs negatives by their hardness itself (paper, Table 2); set semi_hard to false",
                allowed=["nt_logistic", "margin"],
                involves=("/loss/kind",),
            )
        )
    for index, operation in enumerate(spec.views.operations or ()):
        for field in ("scale", "ratio", "sigma"):
            bounds = getattr(operation, field, None)
            if bounds is not None and not 0 < bounds[0] <= bounds[1]:
                problems.append(
                    SpecProblem(
                        pointer=f"/views/operations/{index}/{field}",
                        code="range_invalid",
                        detail=f"{field} {list(bounds)} is no range; give two numbers, 0 < low <= high",
                        allowed="0 < low <= high",
                    )
                )
    if spec.views.operations is not None and (spec.views.color_strength, spec.views.blur) != (None, None):
        problems.append(
            SpecProblem(
                pointer="/views/operations",
                code="views_given_twice",
                detail="operations replaces the preset; leave out color_strength and blur, or operations",
                involves=("/views/color_strength", "/views/blur"),
            )
        )
    return problems
