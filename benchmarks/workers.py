"""Two workers of one thread beside one worker of two threads: images a second, as a ratio.

    python benchmarks/workers.py [--quick]

The whole loop through Ray Train, as a job runs it: resnet8, random images of 32 px, N = 256, float32,
channels_last, batch norm over the global batch. The two take turns of a run each; the first epochs
of a run are its warm-up. Rank 0 also counts what it says to the others and how long it is in there,
which is mostly waiting until the others have got as far.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.local_ray import LocalRay, local_ray
from benchmarks.harness.noise_run import BATCH_SIZE, SIDE, noise_spec, trial_context, write_noise
from benchmarks.harness.turns import verdict
from service.dispatch.job import JOB_ENVIRONMENT

if TYPE_CHECKING:
    from trainer.epoch_report import EpochReport

STEPS: Final = 8  # an epoch
WARM_UP_EPOCHS: Final = 2
THREADS: Final = 2  # in all
GOAL: Final = 0.8
COLLECTIVES: Final = ("all_gather_single", "all_gather", "all_reduce", "reduce_scatter_tensor", "broadcast")


@dataclass(kw_only=True)
class Conversation:
    """What this process says to other ranks, from when it is listened to."""

    num_messages: int = 0
    seconds: float = 0.0

    def listen(self) -> None:
        """Count each collective of torch and each small message from now on."""
        import torch.distributed as dist

        from trainer.small_messages import SmallMessages

        for name in COLLECTIVES:
            setattr(dist, name, self._counted(getattr(dist, name)))
        SmallMessages.all_gather = self._counted(SmallMessages.all_gather)  # type: ignore[method-assign] # a process that only measures

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.num_messages += 1
                self.seconds += time.perf_counter() - start_s

        return counted


@dataclass(kw_only=True)
class EpochLog:
    """What rank 0 does at the end of each epoch: leave a line about it."""

    path: str
    conversation: Conversation | None = None

    def __call__(self, report: EpochReport) -> bool:
        if self.conversation is None:
            self.conversation = Conversation()
            self.conversation.listen()
        rate = report.metrics["images_per_second"]
        line = {
            "images_per_second": rate,
            "share": self.conversation.seconds / (STEPS * BATCH_SIZE / rate),
            "messages": self.conversation.num_messages / STEPS,
        }
        if report.epoch > WARM_UP_EPOCHS:
            with Path(self.path).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        self.conversation.num_messages, self.conversation.seconds = 0, 0.0
        return False


def train_once(folder: Path, *, num_workers: int, name: str, epochs: int) -> None:
    """Train as a job does, a driver of Ray Train; the driver is this process."""
    import ray

    from trainer.launch import run_trial

    ray.init(log_to_driver=False, runtime_env={"env_vars": {**JOB_ENVIRONMENT, "PYTHONPATH": sys.path[0]}})
    spec = noise_spec(
        precision="float32",
        channels_last=True,
        epochs=epochs,
        scaling={"num_workers": num_workers, "cpus_per_worker": THREADS // num_workers},
    )
    run_trial(spec, trial_context(folder, name), on_epoch=EpochLog(path=str(folder / f"{name}.jsonl")))


def compare(ray: LocalRay, *, rounds: int, epochs: int) -> None:
    lines: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for round_ in range(rounds):
        for num_workers in (1, 2) if round_ % 2 == 0 else (2, 1):
            name = f"w{num_workers}-{round_}"
            ray.run(__file__, "--only", str(num_workers), name, str(epochs), "--folder", str(ray.folder))
            found = (ray.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            lines[num_workers] += [json.loads(line) for line in found]
            rate = median(line["images_per_second"] for line in lines[num_workers][-len(found) :])
            print(f"W = {num_workers}, {THREADS // num_workers} threads each: {rate:,.0f} images/s", flush=True)

    def middle(num_workers: int, what: str) -> float:
        return median(line[what] for line in lines[num_workers])

    print(
        f"W = 2: {middle(2, 'messages'):.0f} messages a step, {middle(2, 'share'):.2f} of the step in collectives "
        f"(W = 1: {middle(1, 'messages'):.0f})"
    )
    ratio = middle(2, "images_per_second") / middle(1, "images_per_second")
    print(f"W = 2 makes {ratio:.3f} of W = 1, goal >= {GOAL}: {verdict(is_reached=ratio >= GOAL)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 round of short runs instead of 2")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        num_workers, name, epochs = arguments.only
        train_once(arguments.folder, num_workers=int(num_workers), name=name, epochs=int(epochs))
        return
    print(f"resnet8, {SIDE} px, N = {BATCH_SIZE}, float32, {THREADS} threads in all", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), num_steps=STEPS)
        with local_ray(Path(folder), num_cpus=THREADS) as ray:
            compare(ray, rounds=1 if arguments.quick else 2, epochs=5 if arguments.quick else 14)


if __name__ == "__main__":
    main()
