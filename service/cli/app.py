"""The commands, put together. Nothing here may import what is slow to load: `--help` comes at once."""

from __future__ import annotations

import typer

from service.cli import catalogue, datasets, experiments, operations, stack

__all__ = ["app"]

app = typer.Typer(
    name="simclr",
    help="SimCLR experiments as a service: pretraining, sweeps, and the encoders that come out.",
    epilog="Exit codes: 0 done, 1 the experiment failed, 2 refused, 3 unreachable, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (stack, experiments, catalogue, datasets, operations):
    module.register(app)
