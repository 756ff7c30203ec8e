"""Commands that start and end the embedded stack."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from service.cli.connection import settings
from service.cli.outcome import ExitCode, outcome
from service.cli.output import AsJson, plain, print_json

if TYPE_CHECKING:
    from service.embedded.stack import Report
    from service.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (demo, serve, stop):
        app.command()(command)


def demo(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and views.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Default: 70. Fewer end sooner; the encoder is worth less.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pretrain a small encoder on the embedded images, and say what it is worth."""
    from service.cli.demo import print_result, run_demo

    with outcome(as_json=as_json):
        console = Console(stderr=as_json, highlight=False)
        result = run_demo(settings(), seed=seed, epochs=epochs, report=_reporter(console), console=console)
        if as_json:
            print_json(result.document())
        else:
            print_result(result, console)
        if result.state != "succeeded":
            raise typer.Exit(ExitCode.FAILED)


def serve(*, as_json: AsJson = False) -> None:
    """Start what the settings leave unset, and serve until Ctrl-C."""
    from service.embedded.supervisor import serve as serve_stack

    with outcome(as_json=as_json):
        report = _reporter(Console(stderr=as_json, highlight=False))
        serve_stack(settings(), report=report, on_ready=partial(_announce, as_json=as_json))


def stop(*, as_json: AsJson = False) -> None:
    """End the stack of this state directory, and whatever an earlier one left."""
    from service.embedded.supervisor import stop as stop_stack

    with outcome(as_json=as_json):
        ended = stop_stack(settings())
        if as_json:
            print_json({"stopped": ended})
        else:
            Console(highlight=False).print(plain(f"ended {len(ended)} processes" if ended else "nothing was running"))


def _reporter(console: Console) -> Report:
    def report(title: str, text: str) -> None:
        console.print(Text(f"{title:<8}", style="bold") + plain(text), soft_wrap=True)

    return report


def _announce(settings: Settings, *, as_json: bool) -> None:
    if as_json:
        from service.public_address import without_userinfo

        mlflow = without_userinfo(settings.mlflow_uri) if settings.mlflow_uri else None
        ray = without_userinfo(settings.ray_address) if settings.ray_address else None
        addresses = {"url": settings.base_url, "ray": ray, "mlflow": mlflow}
        print_json({"event": "ready", "home": str(settings.home_dir), **addresses})
