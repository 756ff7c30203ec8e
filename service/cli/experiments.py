"""Commands about experiments."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from service.cli.connection import connect
from service.cli.outcome import ExitCode, outcome
from service.cli.output import AsJson, error_console, plain, print_json, print_members, print_table
from service.cli.plan_lines import plan_lines
from service.errors import SettingsError

if TYPE_CHECKING:
    from service.client import Experiment

__all__ = ["register"]

Id = Annotated[str, typer.Argument(help="Id of an experiment.", metavar="ID")]
_PATIENCE_S: Final = 120.0  # of who waits for an experiment: the service may be restarted meanwhile
_COLUMNS: Final = ("id", "name", "kind", "state", "progress", "metric", "value", "created_at")
_SHOWN: Final = (
    "id",
    "name",
    "kind",
    "state",
    "reason",
    "attempt",
    "labels",
    "progress",
    "best",
    "created_at",
    "finished_at",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (submit, show, watch, cancel, pause, resume, reproduce, compare, encoder):
        app.command()(command)
    app.command("list")(list_)


def submit(
    file: Annotated[str, typer.Argument(help="JSON document of the experiment; - reads standard input.")],
    *,
    follow: Annotated[bool, typer.Option("--watch", help="Show its progress until it has ended.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Show spec and plan; submit nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit an experiment."""
    with outcome(as_json=as_json), connect() as client:
        document = _read_document(file)
        if validate_only:
            print_json(client.validate(document))
            return
        experiment = client.submit(document)
        if not as_json:
            for line in plan_lines(experiment["plan"]):
                error_console().print(plain(line))
        if follow or wait:
            experiment = _see_through(experiment, is_shown=follow and not as_json)
        _print_experiment(experiment, as_json=as_json)
        _exit_as(experiment, is_over=follow or wait)


def _read_document(file: str) -> dict[str, Any]:
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        document = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not UTF-8; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise SettingsError(f"{file}, line {error.lineno}, column {error.colno}: {error.msg}; write JSON") from error
    if not isinstance(document, dict):
        raise SettingsError(f'{file}: write a JSON object like {{"name": ..., "kind": "pretrain", "spec": {{...}}}}')
    return document


def _see_through(experiment: Experiment, *, is_shown: bool) -> Experiment:
    from service.cli.progress import show_progress

    with connect(retry_for_s=_PATIENCE_S) as client:
        return show_progress(client, experiment) if is_shown else client.wait(experiment["id"])


def _exit_as(experiment: Experiment, *, is_over: bool) -> None:
    if is_over and experiment["state"] != "succeeded":
        raise typer.Exit(ExitCode.FAILED)


def _print_experiment(experiment: Experiment, *, as_json: bool) -> None:
    if as_json:
        print_json(experiment)
        return
    links = {name: link for name, link in experiment["links"].items() if link}
    print_members({name: experiment.get(name) for name in _SHOWN if experiment.get(name)} | links)


def list_(
    *,
    state: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only pretrain or sweep.")] = None,
    label: Annotated[str | None, typer.Option(help="Only with this label, KEY:VALUE.")] = None,
    name: Annotated[str | None, typer.Option(help="Only with this name.")] = None,
    order_by: Annotated[str | None, typer.Option(help="created_at, name, priority; -name: descending.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List experiments, newest first."""
    with outcome(as_json=as_json), connect() as client:
        found = client.experiments(
            state=state, kind=kind, label=label, name=name, order_by=order_by, page_size=min(limit, 1000)
        )
        items = [experiment for experiment, _ in zip(found, range(limit), strict=False)]
        if as_json:
            print_json(items)
            return
        print_table((_row(experiment) for experiment in items), _COLUMNS)


def _row(experiment: Experiment) -> dict[str, object]:
    progress, best = experiment["progress"], experiment["best"]
    is_sweep = experiment["kind"] == "sweep"
    done, total = (
        (progress["trials_done"], progress["trials_total"]) if is_sweep else (progress["step"], progress["steps"])
    )
    return {
        **experiment,
        "progress": f"{done or 0}/{total} {'trials' if is_sweep else 'steps'}" if total else "",
        "metric": best["metric"] if best else "",
        "value": best["value"] if best else "",
    }


def show(experiment_id: Id, *, as_json: AsJson = False) -> None:
    """Show one experiment and its trials."""
    with outcome(as_json=as_json), connect() as client:
        experiment = client.experiment(experiment_id)
        trials = list(client.trials(experiment_id))
        if as_json:
            print_json({**experiment, "trials": trials})
            return
        _print_experiment(experiment, as_json=False)
        rows = [{**trial, **trial["params"], **trial["metrics"]} for trial in trials]
        names = dict.fromkeys(name for trial in trials for name in (*trial["params"], *trial["metrics"]))
        if len(trials) == 1:
            print_members({"trial": trials[0]["id"], **trials[0]["metrics"]})
        elif rows:
            print_table(rows, ("id", "state", *names))


def watch(experiment_id: Id, *, as_json: AsJson = False) -> None:
    """Follow an experiment until it has ended; with --json, one event a line."""
    with outcome(as_json=as_json), connect() as client, connect(retry_for_s=_PATIENCE_S) as stream:
        experiment = client.experiment(experiment_id)
        if as_json:
            for event in stream.watch(experiment_id):
                line = {"type": event.type, "id": event.id, "data": event.data}
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
            experiment = client.experiment(experiment_id)
        else:
            experiment = _see_through(experiment, is_shown=True)
            _print_experiment(experiment, as_json=False)
        _exit_as(experiment, is_over=True)


def cancel(experiment_id: Id, *, as_json: AsJson = False) -> None:
    """End an experiment; what it reached is kept."""
    with outcome(as_json=as_json), connect() as client:
        _print_experiment(client.cancel(experiment_id), as_json=as_json)


def pause(experiment_id: Id, *, as_json: AsJson = False) -> None:
    """Stop an experiment after a checkpoint."""
    with outcome(as_json=as_json), connect() as client:
        _print_experiment(client.pause(experiment_id), as_json=as_json)


def resume(experiment_id: Id, *, as_json: AsJson = False) -> None:
    """Let a paused experiment go on."""
    with outcome(as_json=as_json), connect() as client:
        _print_experiment(client.resume(experiment_id), as_json=as_json)


def reproduce(experiment_id: Id, *, as_json: AsJson = False) -> None:
    """Run an experiment again and compare the encoders, bit for bit."""
    from service.cli.reproduction import compare_bundles

    with outcome(as_json=as_json), connect() as client:
        again = client.clone(experiment_id)
        again = _see_through(again, is_shown=not as_json)
        _exit_as(again, is_over=True)
        verdict = compare_bundles(client, experiment_id, again["id"])
        (print_json if as_json else print_members)(verdict)
        if not verdict["is_identical"]:
            raise typer.Exit(ExitCode.FAILED)


def compare(
    experiment_ids: Annotated[list[str], typer.Argument(help="Ids of experiments.", metavar="ID...")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show experiments side by side, and where their specs differ."""
    with outcome(as_json=as_json), connect() as client:
        comparison = client.compare(experiment_ids)
        if as_json:
            print_json(comparison)
            return
        columns = dict.fromkeys(name for item in comparison["items"] for name in item)
        print_table(comparison["items"], list(columns))
        rows = [{"differs": path, **values} for path, values in comparison["differences"].items()]
        if rows:
            print_table(rows, ("differs", *experiment_ids))


def encoder(
    experiment_id: Id,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the bundle (zip).")],
    as_json: AsJson = False,
) -> None:
    """Save the encoder bundle of the best trial."""
    with outcome(as_json=as_json), connect() as client:
        sha256 = client.download_encoder(experiment_id, output)
        result = {"path": str(output), "sha256": sha256}
        (print_json if as_json else print_members)(result)
