"""`python -m trainer.parity`: does W workers' gradient equal one worker's, on your own encoder?

From the same weights, one batch of views goes through encoder, head, batch norm and loss once in
one process and once shared by W gloo processes; the gradients of all parameters are compared. It
is the whole claim of this project in one number, and runs in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from trainer.batch_norm import globalize_batch_norm
from trainer.collectives import mean_flat_
from trainer.learner import build_learner
from trainer.precision import resolve_precision
from trainer.spec import PretrainSpec
from trainer.team import Team
from trainer.views import ViewDrawer

__all__ = ["gradient", "gradient_error"]

# float32 in channels_last: torch's one-process batch norm is itself off by up to 2e-4 on one thread.
TOLERANCES = {"float64": 1e-10, "float32": 1e-3}


def gradient(spec: PretrainSpec, team: Team, images_NHWC: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the global loss by each parameter, as one optimiser step would see it."""
    precision = resolve_precision(spec.precision, team.device)
    learner = build_learner(spec, num_classes=None, group=team.group).to(precision.dtype)
    learner = learner.to(memory_format=torch.channels_last) if spec.channels_last else learner
    globalize_batch_norm(learner, group=team.group)
    share = team.share(len(images_NHWC))
    drawer = ViewDrawer(
        spec.views,
        image_size=spec.data.image_size,
        seed=spec.seed,
        dtype=precision.dtype,
        channels_last=spec.channels_last,
    )
    views_2BCHW = drawer.draw_pair(images_NHWC[share], sample_ids_B=torch.arange(len(images_NHWC))[share], epoch=0)
    learner.metrics(learner.outputs(views_2BCHW), None)["loss"].backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    mean_flat_(list(gradients.values()), group=team.group)
    return gradients


def gradient_error(spec: PretrainSpec, *, workers: int) -> float:
    """Return |g_W - g_1| / |g_1| over all parameters, for random images and the weights of `spec.seed`."""
    size = spec.data.image_size
    generator = torch.Generator().manual_seed(spec.seed % 2**32)
    images_NHWC = torch.randint(0, 256, (spec.batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
    alone = gradient(spec, Team(), images_NHWC)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_share, args=(workers, folder, spec.model_dump(mode="json"), images_NHWC), nprocs=workers)  # type: ignore[no-untyped-call] # torch gives it no types
        shared = load_file(Path(folder) / "gradient.safetensors")
    difference = sum(float((shared[name] - alone[name]).square().sum()) for name in alone)
    return float((difference / sum(float(value.square().sum()) for value in alone.values())) ** 0.5)


def _share(rank: int, workers: int, folder: str, spec: dict[str, Any], images_NHWC: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    team = Team(rank=rank, world_size=workers, group=dist.group.WORLD)
    gradients = gradient(PretrainSpec.model_validate(spec), team, images_NHWC)
    if team.is_first:
        contiguous = {name: value.contiguous() for name, value in gradients.items()}
        save_file(contiguous, Path(folder) / "gradient.safetensors")
    dist.destroy_process_group()


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
