"""Clients of a control plane that dies: they submit, pause, resume and cancel, and ask until they are answered."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from service.edge.identifiers import new_experiment_id
from service.experiment import NON_TERMINAL, State, Verb
from service.ports import Idempotency
from tests.fakes.clock import Clock
from tests.fakes.cluster import FakeCluster, Fate
from tests.fakes.control_plane import TEMPLATE
from tests.harness.outside import Ask, Submit, Wish

__all__ = ["InsistentClients", "Submission"]

MOST_LIVING: Final = 8  # experiments that have not ended: half of them wait, because each takes 2 of 8 CPUs
FATES: Final[tuple[tuple[Fate, ...], ...]] = (
    *(((),) * 4),
    ("crash",),
    ("crash", "crash"),
    ("bug", "crash"),
    ("deaf",),
    ("error",),
)
VERBS: Final = (Verb.PAUSE, Verb.RESUME) * 3 + (Verb.CANCEL,) * 2
ROUND_S: Final = (0.2, 0.5, 1.5)  # between two rounds


@dataclass(kw_only=True)
class Submission:
    """What a client wanted, each id that a try of it would have had, and the one that it got."""

    fates: tuple[Fate, ...]
    tried: list[str] = field(default_factory=list)
    experiment_id: str | None = None
    obeyed: list[tuple[Verb, State]] = field(default_factory=list)  # and the state that the answer named


class InsistentClients:
    """The part of the world that a control plane calls `clients`."""

    def __init__(
        self,
        chance: random.Random,
        *,
        clock: Clock,
        cluster: FakeCluster,
        states: Callable[[], Mapping[str, State]],
        is_over: Callable[[], bool],
    ) -> None:
        """Build them; `states` gives those of all experiments, `is_over` whether nothing is left to be done."""
        self.submissions: dict[int, Submission] = {}  # by the number of the wish
        self.is_closing = False  # nothing new is wanted, and what is paused is resumed
        self._chance = chance
        self._clock = clock
        self._cluster = cluster
        self._states = states
        self._is_over = is_over
        self._asked: dict[int, Ask] = {}
        self._unanswered: set[int] = set()
        self._num_wishes = 0

    # --- what a control plane calls ---------------------------------------------------------------

    async def next_round(self) -> list[Wish] | None:
        """Let time pass; return what is wanted and not answered yet, None when all is over."""
        self._clock.advance(self._chance.choice(ROUND_S))
        if not self._unanswered:
            if self.is_closing and self._is_over():
                return None
            self._want()
        return [self._asked[n] if n in self._asked else self._submit(n) for n in sorted(self._unanswered)]

    async def hear(self, number: int, answer: str | None) -> None:
        """Take an answer: the id of the experiment, the state that a verb led to, None where it was refused."""
        self._unanswered.discard(number)
        if number not in self._asked:
            submission = self.submissions[number]
            assert answer in submission.tried, f"{answer} is none of {submission.tried}"
            assert submission.experiment_id in (None, answer), "one key made two experiments"
            submission.experiment_id = answer
        elif answer is not None:
            ask = self._asked[number]
            self.of(ask.experiment_id).obeyed.append((ask.verb, State(answer)))

    # --- what they want ---------------------------------------------------------------------------

    def of(self, experiment_id: str) -> Submission:
        """Return the submission that made an experiment."""
        return next(each for each in self.submissions.values() if each.experiment_id == experiment_id)

    def _want(self) -> None:
        states = self._states()
        told = {each.experiment_id for each in self.submissions.values()}
        assert states.keys() == told, f"lost, or nobody was told of them: {states.keys() ^ told}"
        living = {name: state for name, state in states.items() if state in NON_TERMINAL}
        if self.is_closing:
            for name in (name for name, state in living.items() if state is State.PAUSED):
                self._ask(name, Verb.RESUME)
            return
        for _ in range(min(2, MOST_LIVING - len(living))):  # two at once share a commit
            self.submissions[self._new_number()] = Submission(fates=self._chance.choice(FATES))
        if living and self._chance.random() < 0.5:
            self._ask(self._chance.choice(sorted(living)), self._chance.choice(VERBS))

    def _ask(self, experiment_id: str, verb: Verb) -> None:
        number = self._new_number()
        self._asked[number] = Ask(number=number, experiment_id=experiment_id, verb=verb)

    def _new_number(self) -> int:
        self._num_wishes += 1
        self._unanswered.add(self._num_wishes)
        return self._num_wishes

    def _submit(self, number: int) -> Submit:
        """Return one more try of a submission: under a new id, as the service gives each request, and the old key."""
        submission = self.submissions[number]
        experiment_id = new_experiment_id()
        submission.tried.append(experiment_id)
        self._cluster.fates[experiment_id] = list(submission.fates)
        key = Idempotency(
            owner=TEMPLATE.owner,
            route="POST /experiments",
            key=f"wish-{number}",
            body_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        )
        return Submit(number=number, new=replace(TEMPLATE, id=experiment_id), idempotency=key)
