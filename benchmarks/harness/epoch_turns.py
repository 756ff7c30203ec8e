"""What rank 0 of a contender does at the end of each epoch: it reports it, and waits for its next turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.called_turns import Caller, TurnTable
from benchmarks.harness.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.epoch_report import EpochReport

__all__ = ["EpochTurns", "middle_epoch", "take_epochs_in_turn"]

WARM_UP_EPOCHS: Final = 2


@dataclass(kw_only=True)
class EpochTurns:
    """`on_epoch` of a run that ends when the table is closed."""

    caller: Caller
    images_an_epoch: int
    _conversation: Conversation = field(default_factory=Conversation, init=False)

    def __call__(self, report: EpochReport) -> bool:
        if report.epoch == 1:
            self._conversation.listen()
        if report.epoch < WARM_UP_EPOCHS:
            return False
        rate = report.metrics["images_per_second"]
        shares = self._conversation.shares(self.images_an_epoch / rate)
        return not self.caller.over({"images_per_second": rate, "shares": shares})


def take_epochs_in_turn(table: TurnTable, names: Sequence[str], *, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Return the epochs of each contender; every other round goes the other way."""
    table.await_callers(len(names))
    epochs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            epochs[name].append(table.take_turn(name))
        rates = (f"{name} {epochs[name][-1]['images_per_second']:,.0f}" for name in names)
        print("images/s: " + ", ".join(rates), flush=True)
    return epochs


def middle_epoch(epochs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the epoch of the median rate."""
    return sorted(epochs, key=lambda epoch: float(epoch["images_per_second"]))[len(epochs) // 2]
