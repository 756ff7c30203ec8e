"""A running experiment as a bar: epoch, loss, kNN, images per second, time to go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.cli.output import plain
from trainer.metric_names import EPOCH, IMAGES_PER_SECOND, KNN_ACCURACY, LOSS

if TYPE_CHECKING:
    from service.client import Client, Event, Experiment

__all__ = ["show_progress"]

_LINE_INTERVAL_S: Final = 10.0  # where the output is no terminal
_SHOWN: Final = {
    EPOCH: "epoch {:g}",
    LOSS: "loss {:.3f}",
    KNN_ACCURACY: "kNN {:.1%}",
    IMAGES_PER_SECOND: "{:.0f} images/s",
}


def show_progress(client: Client, experiment: Experiment, *, console: Console | None = None) -> Experiment:
    """Show an experiment until it has ended, and return it as it ended."""
    console = console or Console(highlight=False)
    view: _Bar | _Lines = _Bar(console, experiment) if console.is_terminal else _Lines(console, experiment)
    with view:
        for event in client.watch(experiment["id"]):
            view.take(event)
            if event.type in ("state", "trial"):
                view.refresh(client.experiment(experiment["id"]))
    return client.experiment(experiment["id"])


class _Numbers:
    """The last values that were told."""

    def __init__(self, experiment: Experiment) -> None:
        self.state = str(experiment["state"])
        self.step = 0
        self._values: dict[str, float] = {}

    def take(self, event: Event) -> None:
        if event.type == "metric":
            self._take_metrics(event.data)

    def _take_metrics(self, data: Mapping[str, Any]) -> None:
        self.step = max(self.step, int(data.get("step") or 0))
        values: Mapping[str, float | None] = data.get("metrics") or {}
        self._values.update({name: value for name, value in values.items() if value is not None})

    def text(self) -> str:
        return "  ".join(form.format(self._values[name]) for name, form in _SHOWN.items() if name in self._values)


class _Bar:
    """One line that is drawn again and again."""

    def __init__(self, console: Console, experiment: Experiment) -> None:
        self._numbers = _Numbers(experiment)
        self._is_sweep = experiment["kind"] == "sweep"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        total = experiment["plan"].get("trials" if self._is_sweep else "steps")
        self._task: TaskID = self._progress.add_task(self._numbers.state, total=total, numbers="")

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def take(self, event: Event) -> None:
        """Take an event of the stream."""
        self._numbers.take(event)
        step = None if self._is_sweep else self._numbers.step
        self._progress.update(self._task, completed=step, numbers=self._numbers.text())

    def refresh(self, experiment: Experiment) -> None:
        """Take the experiment as it is now."""
        done = experiment["progress"]["trials_done"] if self._is_sweep else None
        self._progress.update(self._task, description=str(experiment["state"]), completed=done)


class _Lines:
    """A line for each state, and one now and then for the numbers."""

    def __init__(self, console: Console, experiment: Experiment) -> None:
        self._console = console
        self._numbers = _Numbers(experiment)
        self._state = self._numbers.state
        self._told_at = time.monotonic()

    def __enter__(self) -> None:
        self._console.print(plain(self._numbers.state))

    def __exit__(self, *_: object) -> None:
        if text := self._numbers.text():
            self._console.print(plain(text))

    def take(self, event: Event) -> None:
        """Take an event of the stream."""
        self._numbers.take(event)
        if event.type == "metric" and time.monotonic() - self._told_at >= _LINE_INTERVAL_S:
            self._told_at = time.monotonic()
            self._console.print(plain(f"step {self._numbers.step}  {self._numbers.text()}"))

    def refresh(self, experiment: Experiment) -> None:
        """Take the experiment as it is now."""
        if experiment["state"] != self._state:
            self._state = experiment["state"]
            self._console.print(plain(self._state))
