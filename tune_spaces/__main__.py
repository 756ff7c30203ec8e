"""`python -m tune_spaces --document WORD`: the driver of a sweep, run as a Ray job."""

from __future__ import annotations

import argparse
import sys

from trainer.context import JobDocument
from trainer.job import run_job
from tune_spaces.driver.sweep import run_sweep


def main(arguments: list[str]) -> int:
    """Run one attempt and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tune_spaces", description="Run one attempt of a sweep.")
    parser.add_argument("--document", required=True, help="a JobDocument as one word")
    return run_job(JobDocument.decode(parser.parse_args(arguments).document), run_sweep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
