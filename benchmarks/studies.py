"""The paper's nine studies at their smallest size, each as the service's job runs it: seconds and answer.

    python benchmarks/studies.py [--dataset openmoji] [NAME ...]

On a Ray of two CPUs, one study after the other, without MLflow. The answers of so small a size say
little about the paper; that there is one, with its figure, says that the study works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.local_ray import local_ray
from benchmarks.harness.turns import verdict
from tune_spaces.studies import list_studies

GOAL_S: Final = 120.0


def main() -> None:
    known = [study.name for study in list_studies()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the cheapest two")
    parser.add_argument("--dataset", default="openmoji")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; none: all")
    arguments = parser.parse_args()
    names = arguments.names or (["h-vs-z", "colour-shortcut"] if arguments.quick else known)
    longest_s = 0.0
    with tempfile.TemporaryDirectory() as temporary, local_ray(Path(temporary), num_cpus=2) as ray:
        for name in names:
            done = ray.sweep(name, {"study": name, "size": "smoke", "base": {"data": {"dataset": arguments.dataset}}})
            num_trials = sum(done.report["num_trials"].values())
            print(f"{name:>20}: {done.wall_s:6.1f} s, {num_trials:2d} trials. {done.report['sentence']}", flush=True)
            longest_s = max(longest_s, done.wall_s)
    print(f"the longest took {longest_s:.0f} s (goal {GOAL_S:.0f}: {verdict(is_reached=longest_s <= GOAL_S)})")


if __name__ == "__main__":
    main()
