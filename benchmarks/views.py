"""Views a second against lightly's SimCLR transform: one process, one thread, the two by turns.

    python benchmarks/views.py [--quick]

Both make two views, float32 in 0..1 and of the same side, of the same square images of that side, in
memory and decoded: PIL images for lightly, as its users have them, uint8 for us. The operations are the
paper's at their probabilities: those of lightly's transform by default, blur included (at 32 pixels
without and with it), less its mean and deviation (ours has none). Lightly's views stay apart; ours come
as one batch, which costs us a copy that it leaves to its loader. Lightly's blur is an approximation of
PIL's, ours is the Gaussian of torchvision.

Time is the CPU time of this process, so that others on the machine distort the ratio less. The process
has the allocator settings of a job, which save both sides page faults.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image

from service.dispatch.job import JOB_ENVIRONMENT
from trainer.spec import ViewsSpec
from trainer.views import ViewDrawer

CASES = ((32, "simclr-cifar", 256), (32, "simclr", 256), (96, "simclr", 64), (224, "simclr", 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    rounds = 3 if parser.parse_args().quick else 15
    if not JOB_ENVIRONMENT.items() <= os.environ.items():  # the allocator reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **JOB_ENVIRONMENT})  # noqa: S606 - itself
    torch.set_num_threads(1)
    for side, preset, num_images in CASES:
        ours, theirs = measure(side=side, preset=preset, num_images=num_images, rounds=rounds)
        print(
            f"{side:3d} px {preset:>12}: {ours:8,.0f} views/s, lightly {theirs:6,.0f}, ratio {ours / theirs:.1f}",
            flush=True,
        )


def measure(*, side: int, preset: str, num_images: int, rounds: int) -> tuple[float, float]:
    """Return the median views a second of this project and of lightly; the first round is not counted."""
    images_BHWC = torch.randint(0, 256, (num_images, side, side, 3), dtype=torch.uint8)
    ids_B = torch.arange(num_images)
    spec = ViewsSpec.model_validate({"preset": preset})
    drawer = ViewDrawer(spec, image_size=side, seed=0, dtype=torch.float32, channels_last=False)
    peer = SimCLRTransform(
        input_size=side,
        cj_strength=0.5 if preset == "simclr-cifar" else 1.0,
        gaussian_blur=0.0 if preset == "simclr-cifar" else 0.5,
        normalize=None,
    )
    pictures = [Image.fromarray(image.numpy()) for image in images_BHWC[: max(8, num_images // 4)]]
    ours, theirs = [], []
    for epoch in range(rounds + 1):
        seconds = cpu_seconds(lambda epoch=epoch: drawer.draw_pair(images_BHWC, sample_ids_B=ids_B, epoch=epoch))  # type: ignore[misc] # its default is an int
        ours.append(2 * num_images / seconds)
        seconds = cpu_seconds(lambda: [peer(picture) for picture in pictures])
        theirs.append(2 * len(pictures) / seconds)
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
