"""Parity: does W workers' gradient equal one worker's, on your own encoder, with batch norm in it?

`python -m trainer.parity` asks it of a spec at its first weights: one batch of views goes through
encoder, head, batch norm and loss once in one process and once shared by W gloo processes, and the
gradients of all parameters are compared. It is the whole claim of this project in one number.

Every start of a run asks the same of its own team and weights (`team_parity`), in float64 and on
few and small images, so that it costs a second or so: what workers exchange has the same form at
any size of the images, and rounding leaves 1e-13 where a mistake leaves 1e-3 and more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from trainer.batch_norm import BLOCK_IMAGES
from trainer.collectives import mean_flat_
from trainer.data.dataset import Dataset
from trainer.learner import SimclrLearner, SupervisedLearner, prepare_learner
from trainer.precision import resolve_precision
from trainer.spec import PretrainSpec
from trainer.team import Team
from trainer.views import ViewDrawer

__all__ = ["TOLERANCES", "gradient_error", "team_parity"]

# float32: where a worker's images are whole blocks of batch norm, its statistics are those of one process to the
# last bit. Elsewhere the last bit may flip a ReLU, and one that flips leaves 2e-4 in the gradient.
TOLERANCES: Final = {"float64": 1e-10, "float32": 1e-5}
TOLERANCE_OF_OTHER_SHARES: Final = 1e-3

CHECK_IMAGES_A_WORKER: Final = 2
CHECK_IMAGES: Final = 32  # beyond so many in all, a worker has one
CHECK_SIDE: Final = 16  # pixels, at most


# --- in a run -------------------------------------------------------------------------------------


def team_parity(
    spec: PretrainSpec, learner: SimclrLearner | SupervisedLearner, dataset: Dataset, team: Team
) -> float | None:
    """Return |g_W - g_1| / |g_1| of a running team at the weights of `learner`; called by all ranks.

    Both gradients come from float64 copies; `learner` is not touched. 0 at W = 1, where they are
    one; None on ranks but the first, which alone computes g_1.
    """
    if team.group is None:
        return 0.0
    count = team.world_size * (CHECK_IMAGES_A_WORKER if team.world_size * CHECK_IMAGES_A_WORKER <= CHECK_IMAGES else 1)
    positions = np.arange(min(count, spec.batch_size))
    images_NHWC = torch.from_numpy(_shrunk(dataset.pretrain.take(positions)))
    labels = dataset.pretrain.labels
    labels_N = None if labels is None else torch.from_numpy(labels[positions])

    def gradient(group_team: Team) -> dict[str, Tensor]:
        copy = prepare_learner(spec, num_classes=dataset.num_classes or None, team=group_team, dtype=torch.float64)
        copy.load_state_dict(learner.state_dict())
        return _gradient(copy, spec, group_team, images_NHWC, labels_N, dtype=torch.float64)

    shared = gradient(team)
    return _relative_error(shared, gradient(Team(device=team.device))) if team.is_first else None


def _shrunk(images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    stride = -(-images_NHWC.shape[1] // CHECK_SIDE)
    return np.ascontiguousarray(images_NHWC[:, ::stride, ::stride])


# --- of a spec ------------------------------------------------------------------------------------


def gradient_error(spec: PretrainSpec, *, workers: int) -> float:
    """Return |g_W - g_1| / |g_1| over all parameters, for random images and the weights of `spec.seed`."""
    size = spec.data.image_size
    generator = torch.Generator().manual_seed(spec.seed % 2**32)
    images_NHWC = torch.randint(0, 256, (spec.batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
    with _one_thread():  # as each worker has: others would share the sums otherwise, and round them otherwise
        alone = _first_gradient(spec, Team(), images_NHWC)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_share, args=(workers, folder, spec.model_dump(mode="json"), images_NHWC), nprocs=workers)  # type: ignore[no-untyped-call] # torch gives it no types
        shared = load_file(Path(folder) / "gradient.safetensors")
    return _relative_error(shared, alone)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _share(rank: int, workers: int, folder: str, spec: dict[str, Any], images_NHWC: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    team = Team(rank=rank, world_size=workers, group=dist.group.WORLD)
    gradients = _first_gradient(PretrainSpec.model_validate(spec), team, images_NHWC)
    if team.is_first:
        contiguous = {name: value.contiguous() for name, value in gradients.items()}
        save_file(contiguous, Path(folder) / "gradient.safetensors")
    dist.destroy_process_group()


def _first_gradient(spec: PretrainSpec, team: Team, images_NHWC: Tensor) -> dict[str, Tensor]:
    dtype = resolve_precision(spec.precision, team.device).dtype
    learner = prepare_learner(spec, num_classes=None, team=team, dtype=dtype)
    return _gradient(learner, spec, team, images_NHWC, None, dtype=dtype)


# --- of both --------------------------------------------------------------------------------------


def _gradient(
    learner: SimclrLearner | SupervisedLearner,
    spec: PretrainSpec,
    team: Team,
    images_NHWC: Tensor,
    labels_N: Tensor | None,
    *,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return the gradient of the global loss by each parameter, as one optimiser step would see it."""
    share = team.share(len(images_NHWC))
    drawer = ViewDrawer(
        spec.views,
        image_size=images_NHWC.shape[1],
        seed=spec.seed,
        dtype=dtype,
        channels_last=spec.channels_last,
    )
    ids_B = torch.arange(len(images_NHWC))[share]
    views_2BCHW = drawer.draw_pair(images_NHWC[share].to(team.device), sample_ids_B=ids_B, epoch=0)
    labels_B = None if labels_N is None else labels_N[share].to(team.device)
    learner.metrics(learner.outputs(views_2BCHW), labels_B)["loss"].backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    mean_flat_(list(gradients.values()), group=team.group)
    return gradients


def _relative_error(shared: dict[str, Tensor], alone: dict[str, Tensor]) -> float:
    difference = sum(float((shared[name] - alone[name]).square().sum()) for name in alone)
    size = sum(float(value.square().sum()) for value in alone.values())
    return (difference / size) ** 0.5 if difference else 0.0


def main(arguments: list[str]) -> int:
    """Print the relative gradient error as JSON; exit 1 if it is more than rounding explains."""
    parser = argparse.ArgumentParser(prog="python -m trainer.parity", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--spec", type=Path, help="a pretrain spec as JSON; without one: resnet8 on 32 px")
    options = parser.parse_args(arguments)
    document = {"data": {"dataset": "any"}, "encoder": {"name": "resnet8"}, "batch_size": 32, "precision": "float64"}
    if options.spec is not None:
        document = json.loads(options.spec.read_text())
    spec = PretrainSpec.model_validate(document)
    error = gradient_error(spec, workers=options.workers)
    precision = resolve_precision(spec.precision, torch.device("cpu")).name
    tolerance = TOLERANCES.get(precision, 1e-2)
    if precision == "float32" and spec.batch_size % (options.workers * BLOCK_IMAGES):
        tolerance = TOLERANCE_OF_OTHER_SHARES
    result = {
        "encoder": spec.encoder.model_dump(),
        "workers": options.workers,
        "precision": precision,
        "relative_gradient_error": error,
        "tolerance": tolerance,
    }
    print(json.dumps(result, indent=2))  # noqa: T201 - what the command is for
    return int(error > tolerance)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
