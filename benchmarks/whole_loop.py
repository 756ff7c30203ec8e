"""The whole loop beside its model alone and beside a loop of lightly's: images a second, as ratios.

    python benchmarks/whole_loop.py [--quick] [--threads 2]

resnet8 with a nonlinear head, random images of 32 px in memory, N = 256. `ours` is a run as it is:
`trainer.loop.train` with metrics, outbox and checkpoints in a directory. Beside it

- `model alone`: the same updates on views that were drawn before;
- `lightly, tuned`: its SimCLRTransform on PIL images in 1 or 2 DataLoader workers, whichever is faster,
  its NTXentLoss, the same encoder, head, precision, layout and process settings, both views in one forward pass,
  torch's SGD;
- `lightly, as written`: the loop of its documentation, float32 in torch's default layout, each view by itself.

All read from memory: nothing is decoded. They take turns of an epoch each, a process each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.noise_run import (
    BATCH_SIZE,
    SIDE,
    build_parts,
    noise_spec,
    train_in_turns,
    trial_context,
    write_noise,
)
from benchmarks.harness.turns import Turn, Turns, contender, take_turns, times, times_cpu, verdict
from service.dispatch.job import JOB_ENVIRONMENT
from trainer.spec import PretrainSpec

STEPS = 8  # a turn
NUM_WORKERS = (1, 2)  # of the DataLoader: the faster one is the peer
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


# --- contenders -----------------------------------------------------------------------------------


def run_model_alone(spec: PretrainSpec, turns: Turns) -> None:
    drawer, stepper = build_parts(spec)
    images_MBHWC = torch.randint(0, 256, (STEPS, BATCH_SIZE, SIDE, SIDE, 3), dtype=torch.uint8)
    ids_B = torch.arange(BATCH_SIZE)
    views = [drawer.draw_pair(images_BHWC, sample_ids_B=ids_B, epoch=0) for images_BHWC in images_MBHWC]
    while True:
        for views_2BCHW in views:
            stepper(views_2BCHW, None, learning_rate=0.1, wishes_stop=False).metrics()
        turns.over(STEPS * BATCH_SIZE)


def run_lightly(spec: PretrainSpec, turns: Turns, *, is_tuned: bool, num_workers: int) -> None:
    import numpy as np
    from lightly.loss import NTXentLoss
    from lightly.transforms.simclr_transform import SimCLRTransform
    from PIL import Image

    from trainer.learner import build_learner
    from trainer.precision import Precision, resolve_precision

    layout = torch.channels_last if is_tuned else torch.contiguous_format
    precision = (
        resolve_precision(spec.precision, torch.device("cpu"))
        if is_tuned
        else Precision(name="float32", device_type="cpu")
    )
    learner = build_learner(spec, num_classes=None, group=None).to(memory_format=layout)
    criterion = NTXentLoss(temperature=spec.loss.temperature)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.06, momentum=0.9)
    options: dict[str, Any] = {"normalize": None} if is_tuned else {}  # ours subtracts no mean
    transform = SimCLRTransform(input_size=SIDE, cj_strength=0.5, gaussian_blur=0.0, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (STEPS * BATCH_SIZE, SIDE, SIDE, 3), dtype=np.uint8)
    loader: DataLoader[Any] = DataLoader(
        Pictures([Image.fromarray(image) for image in pixels], transform),
        batch_size=BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=True,
    )

    def outputs(first: Any, second: Any) -> Any:
        if not is_tuned:
            return learner.outputs(first), learner.outputs(second)
        views = torch.cat([first, second]).to(memory_format=layout)
        with precision.autocast():
            return learner.outputs(views).float().chunk(2)

    while True:
        for first, second in loader:
            loss = criterion(*outputs(first, second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        turns.over(STEPS * BATCH_SIZE)


class Pictures(Dataset[Any]):
    """PIL images in memory, transformed when they are asked for."""

    def __init__(self, pictures: list[Any], transform: Callable[[Any], Any]) -> None:
        self._pictures = pictures
        self._transform = transform

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Any:
        return self._transform(self._pictures[index])


# --- the comparison -------------------------------------------------------------------------------


def compare(folder: Path, *, threads: int, rounds: int) -> None:
    write_noise(folder, num_steps=STEPS)
    words = ("--threads", threads, "--folder", folder, "--only")
    with contender(*words, "ours", environment=JOB_ENVIRONMENT) as ours:
        with contender(*words, "alone", environment=JOB_ENVIRONMENT) as alone:
            mine, theirs = take_turns(ours, alone, rounds=2 * rounds)
        print(f"ours {rate(mine):,.0f} images/s, model alone {rate(theirs):,.0f}", flush=True)
        cpu = f"in CPU time {times_cpu(theirs, mine):.3f}"
        tell(times(theirs, mine), f"of the model alone ({cpu})", goal=0.85)
        flags = sorted(BF16_FLAGS.intersection(cpu_flags()))
        for kind, goal, malloc, is_judged in (
            ("tuned", 1.7, JOB_ENVIRONMENT, True),
            ("as-written", 3.5, {}, bool(flags)),
        ):
            with ExitStack() as stack:
                peers = [stack.enter_context(contender(*words, kind, n, environment=malloc)) for n in NUM_WORKERS]
                first = [turns[0] for turns in take_turns(*peers, rounds=1)]
                best = min(range(len(peers)), key=lambda peer: first[peer].wall_s)
                mine, theirs = take_turns(ours, peers[best], rounds=rounds)
            print(f"lightly, {kind}: {rate(theirs):,.0f} images/s with {NUM_WORKERS[best]} DataLoader workers")
            unjudged = None if is_judged else "not judged, this processor computes bfloat16 in float32"
            tell(times(theirs, mine), f"times lightly, {kind}", goal=goal, unjudged=unjudged)
        print(f"bfloat16 units: {', '.join(flags) or 'none'}")


def rate(turns: Sequence[Turn]) -> float:
    return 1 / median(turn.wall_s for turn in turns)


def tell(ratio: float, what: str, *, goal: float, unjudged: str | None = None) -> None:
    print(f"ours = {ratio:.3f} {what}, goal >= {goal}: {unjudged or verdict(is_reached=ratio >= goal)}", flush=True)


def cpu_flags() -> Iterator[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            yield from line.split()[2:]
            return


def contend(words: list[str], *, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    spec, turns = noise_spec(), Turns()
    match words:
        case ["ours"]:
            train_in_turns(spec, trial_context(folder, "ours"), turns)
        case ["alone"]:
            run_model_alone(spec, turns)
        case [kind, num_workers]:
            run_lightly(spec, turns, is_tuned=kind == "tuned", num_workers=int(num_workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        contend(arguments.only, folder=arguments.folder, threads=arguments.threads)
        return
    print(f"resnet8, {SIDE} px, N = {BATCH_SIZE}, {arguments.threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), threads=arguments.threads, rounds=2 if arguments.quick else 5)


if __name__ == "__main__":
    main()
