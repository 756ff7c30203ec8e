"""Where a sweep's trials come from: a list that is known, or suggestions that learn from results.

Both give the same trials under the same ids to a driver that starts again.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from trainer.trial_table import TrialRow
from tune_spaces.overrides import flat_value
from tune_spaces.plan import PlannedTrial, planned_trials, trial_at
from tune_spaces.space import AnyDomain, Choice, LogUniform, Point, RandInt, walk
from tune_spaces.spec import SweepSpec

if TYPE_CHECKING:
    import optuna

__all__ = ["ListedSupply", "SuggestedSupply", "TrialSupply", "open_supply"]


class TrialSupply(Protocol):
    """Trials, one after the other."""

    def known(self) -> Iterable[PlannedTrial]:
        """Return the trials that are known by now, in order."""

    def take(self) -> PlannedTrial | None:
        """Return the next trial that has not ended; None when there is none, or `limits.max_trials` are taken."""

    def tell(self, trial_id: str, value: float | None) -> None:
        """Learn what a trial came to; None for one without a value."""


def open_supply(sweep: SweepSpec, rows: Mapping[str, TrialRow], done: frozenset[str]) -> TrialSupply:
    """Return the supply of a complete sweep.

    Args:
        sweep: Whose trials.
        rows: What an earlier attempt entered, in order of ids.
        done: The ids of trials that are not to be run again.
    """
    return SuggestedSupply(sweep, rows, done) if sweep.search == "optuna" else ListedSupply(sweep, done)


class ListedSupply:
    """The trials of a grid or of random draws."""

    def __init__(self, sweep: SweepSpec, done: frozenset[str]) -> None:
        self._trials = tuple(planned_trials(sweep))
        allowed = islice(self._trials, sweep.limits.max_trials)
        self._left = deque(trial for trial in allowed if trial.id not in done)

    def known(self) -> tuple[PlannedTrial, ...]:
        return self._trials

    def take(self) -> PlannedTrial | None:
        return self._left.popleft() if self._left else None

    def tell(self, trial_id: str, value: float | None) -> None:
        """Learn nothing: the list stays as it is."""


class SuggestedSupply:
    """Points suggested by Optuna's TPE (Bergstra et al. 2011), each run under every seed.

    What was suggested before a restart is in the trial table; it is asked for again in the same
    order, so that the sampler knows all of it.
    """

    def __init__(self, sweep: SweepSpec, rows: Mapping[str, TrialRow], done: frozenset[str]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep = sweep
        self._pruned = optuna.trial.TrialState.PRUNED
        num_before = math.ceil(len(rows) / len(sweep.seeds))
        sampler = optuna.samplers.TPESampler(seed=sweep.base_spec().seed + num_before, constant_liar=True)
        self._study = optuna.create_study(sampler=sampler, direction="maximize" if sweep.mode == "max" else "minimize")
        self._asked: list[optuna.trial.Trial] = []
        self._values: dict[str, float | None] = {}
        self._trials: list[PlannedTrial] = []
        self._left: deque[PlannedTrial] = deque()
        self._replay(sweep, rows, done)

    def _replay(self, sweep: SweepSpec, rows: Mapping[str, TrialRow], done: frozenset[str]) -> None:
        params = {self._sample(row.id): row.params for row in rows.values()}
        for sample in range(max(params, default=-1) + 1):
            if sample in params:  # of one that is missing from the table another is suggested
                self._study.enqueue_trial(_to_optuna(sweep.axes(), params[sample]))
            self._ask()
        self._left = deque(trial for trial in self._trials if trial.id not in done)
        for row in rows.values():
            if row.id in done:
                value = (row.best or {}).get("value") if row.state == "succeeded" else None
                self.tell(row.id, value)

    def known(self) -> list[PlannedTrial]:
        return self._trials

    def take(self) -> PlannedTrial | None:
        most = min(self._sweep.num_samples, self._sweep.limits.max_trials // len(self._sweep.seeds))
        if not self._left and len(self._asked) < most:
            self._left.extend(self._ask())
        return self._left.popleft() if self._left else None

    def tell(self, trial_id: str, value: float | None) -> None:
        """Learn the mean over seeds once all of a point have ended; a point without a value is set aside."""
        num_seeds = len(self._sweep.seeds)
        self._values[trial_id] = value
        sample = self._sample(trial_id)
        siblings = [trial.id for trial in self._trials[sample * num_seeds : (sample + 1) * num_seeds]]
        if all(sibling in self._values for sibling in siblings):
            values = [found for sibling in siblings if (found := self._values[sibling]) is not None]
            if values:
                self._study.tell(self._asked[sample], sum(values) / len(values))
            else:
                self._study.tell(self._asked[sample], state=self._pruned)

    def _sample(self, trial_id: str) -> int:
        """Return the number of a trial's point."""
        return int(trial_id.removeprefix("t")) // len(self._sweep.seeds)

    def _ask(self) -> list[PlannedTrial]:
        suggestion = self._study.ask()
        point = next(walk(self._sweep.axes(), lambda path, domain: (_suggest(suggestion, path, domain),)))
        first = len(self._trials)
        trials = [trial_at(self._sweep, point, first + offset) for offset in range(len(self._sweep.seeds))]
        self._asked.append(suggestion)
        self._trials.extend(trials)
        return trials


def _suggest(suggestion: optuna.trial.Trial, path: str, domain: AnyDomain) -> Any:
    if isinstance(domain, Choice):  # by place, since Optuna keeps scalars only
        return domain.choice[suggestion.suggest_categorical(_key(path, domain), range(len(domain.choice)))]
    low, high = domain.values()
    if isinstance(domain, RandInt):
        return suggestion.suggest_int(_key(path, domain), low, high)
    return suggestion.suggest_float(_key(path, domain), low, high, log=isinstance(domain, LogUniform))


def _key(path: str, domain: AnyDomain) -> str:
    """Return the name of a domain; the alternatives of one path are different parameters to Optuna."""
    condition = json.dumps(domain.model_dump(mode="json")["when"], sort_keys=True) if domain.when else ""
    return f"{path} {condition}".strip()


def _to_optuna(space: Mapping[str, Any], params: Mapping[str, Any]) -> Point:
    """Return flat params as Optuna has them."""
    found: Point = {}

    def value(path: str, domain: AnyDomain) -> tuple[Any, ...]:
        if not isinstance(domain, Choice):
            found[_key(path, domain)] = params[path]
            return (params[path],)
        place = [flat_value(choice) for choice in domain.choice].index(params[path])
        found[_key(path, domain)] = place
        return (domain.choice[place],)

    next(walk(space, value))
    return found
