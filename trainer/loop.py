"""The run of one trial on one worker, from its first image to its encoder bundle.

    prepare data -> build learner -> resume -> [ draw views -> step -> record ] -> evaluate -> export

The same function runs alone in a process and as one of W workers; what it computes is a function
of spec, data and seed only.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import metric_names
from trainer.agreed_precision import agreed_precision
from trainer.checkpoint import CheckpointStore, capture
from trainer.context import TrialContext
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.determinism import compute_repeatably
from trainer.divergence import NonFiniteH, non_finite_h, non_finite_loss
from trainer.epoch_report import EpochReport, OnEpoch
from trainer.errors import BatchTooLarge, Stopped
from trainer.evaluation import Evaluation
from trainer.feed import Feed
from trainer.fine_tuning import Interrupted
from trainer.learner import prepare_learner
from trainer.memory import require_memory
from trainer.optim import build_optimizer
from trainer.parity import TOLERANCES, team_parity
from trainer.precision import Precision
from trainer.products import leave_products
from trainer.provenance import require_same_data
from trainer.record import describe_run
from trainer.recorder import DRAIN_S
from trainer.resumption import resume
from trainer.schedule import learning_rate
from trainer.scribe import Scribe, StopKind
from trainer.spec import PretrainSpec
from trainer.step import StepOutcome, Stepper, steps_between_looks
from trainer.storage import Storage, open_storage
from trainer.team import Team
from trainer.views import ViewDrawer

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["train"]

logger = logging.getLogger(__name__)


def train(spec: PretrainSpec, context: TrialContext, team: Team, *, on_epoch: OnEpoch | None = None) -> None:
    """Train one trial to its end and leave its completion marker in storage.

    Raises:
        Stopped: If a pause or a cancel was asked for; a checkpoint of the last step is there.
        NonFiniteLoss: With step, rank and value.
        DataError: If the images or labels cannot be used.
        BatchTooLarge: If a step needs more memory than there is.
        CheckpointMissing: If it continues an experiment that has no checkpoint.
        Superseded: If a later start owns the trial.
    """
    compute_repeatably(team.device)
    scribe = Scribe(context) if team.is_first else None
    try:
        Run(spec, context, team, scribe=scribe, on_epoch=on_epoch).run()
    finally:
        if scribe is not None:
            scribe.close()


class Run:
    """The state of one start of a trial on one worker."""

    def __init__(
        self,
        spec: PretrainSpec,
        context: TrialContext,
        team: Team,
        *,
        scribe: Scribe | None,
        on_epoch: OnEpoch | None,
    ) -> None:
        self.spec = spec
        self.context = context
        self.team = team
        self.scribe = scribe
        self.on_epoch = on_epoch
        self.dataset: Dataset = prepare(
            spec.data.dataset,
            image_size=spec.data.image_size,
            cache_dir=Path(context.cache_dir),
            datasets_dir=context.datasets_dir,
            validation_ratio=spec.data.validation_ratio,
        )
        self.feed = Feed(self.dataset.pretrain, seed=spec.seed, batch_size=spec.batch_size, team=team)
        self.steps_per_epoch = self.feed.steps_per_epoch
        self._storage: Storage = scribe.storage if scribe is not None else open_storage(context.storage)
        self.precision: Precision = agreed_precision(spec.precision, self._storage, context, team)
        self._require_memory()
        self.learner = prepare_learner(
            spec, num_classes=self.dataset.num_classes or None, team=team, dtype=self.precision.dtype
        )
        self.optimizer: Optimizer = build_optimizer(spec.optim, self.learner)
        self.drawer = ViewDrawer(
            spec.views,
            image_size=spec.data.image_size,
            seed=spec.seed,
            dtype=self.precision.dtype,
            channels_last=spec.channels_last,
        )
        self.stepper = Stepper(
            self.learner,
            self.optimizer,
            team=team,
            precision=self.precision,
            micro_batch=spec.memory.micro_batch,
            compile_=spec.compile,
        )
        self.evaluation = Evaluation(spec, self.dataset, team, self.precision)
        self._start_metrics: dict[str, float] = {}
        self._step_metrics: dict[str, float] = {}  # of the last step that was read
        self.last_step = 0
        self._has_stepped = False

    # --- the story --------------------------------------------------------------------------------

    def run(self) -> None:
        """Train, evaluate and export, from wherever an earlier start got."""
        require_same_data(self._storage, self.context, self.spec.data, self.dataset, self.team)
        first_step = self._resume()
        if self.scribe is not None:
            self.scribe.begin(describe_run(self.spec, self.context, self.dataset, self.team, self.precision))
            self.scribe.mark("train")
        self._check_parity(first_step)
        logger.info("training from step %d of %d on %d workers", first_step, self.total_steps, self.team.world_size)
        stopped_by = self._train(first_step)
        if stopped_by in ("pause", "cancel"):
            self._keep_now()
            raise self._stopped(stopped_by)
        self._finish(is_early=stopped_by == "early")

    @property
    def total_steps(self) -> int:
        """Return the number of updates of the whole run."""
        return self.spec.epochs * self.steps_per_epoch

    def _require_memory(self) -> None:
        """Refuse a step that does not fit, but only warn on a resume: a killed start may hold what is missing."""
        try:
            spec = self.spec.model_copy(update={"precision": self.precision.name})
            require_memory(spec, num_classes=self.dataset.num_classes, team=self.team)
        except BatchTooLarge as error:  # on all ranks alike
            has_checkpoint = self.team.is_first and bool(self._storage.list(self.context.key("checkpoints/")))
            if not self.team.agree_on(int(has_checkpoint)):
                raise
            logger.warning("%s; goes on from its checkpoint all the same", error)

    def _resume(self) -> int:
        checkpoints = (
            CheckpointStore(self._storage, self.context, fence=None) if self.scribe is None else self.scribe.checkpoints
        )
        self.last_step = resume(checkpoints, self.learner, self.optimizer, team=self.team, context=self.context)
        return self.last_step

    def _check_parity(self, first_step: int) -> None:
        """Compare the gradient of this team with that of one worker, and record by how much they differ."""
        error = team_parity(self.spec, self.learner, self.dataset, self.team)
        if self.scribe is None or error is None:
            return
        self._start_metrics = {
            metric_names.PARITY_ERROR: error,
            metric_names.NUM_WORKERS: float(self.team.world_size),
        }
        self.scribe.start_metrics(first_step, self._start_metrics)
        if not error <= TOLERANCES["float64"]:
            logger.warning(
                "parity: the gradient of %d workers differs from that of one by %.3g, more than the %.0e of rounding: "
                "this run is not the one that its spec names",
                self.team.world_size,
                error,
                TOLERANCES["float64"],
            )

    def _train(self, first_step: int) -> StopKind | None:
        """Make the updates behind `first_step`; return what stopped them early, if anything did."""
        per_epoch = self.steps_per_epoch
        for epoch in range(first_step // per_epoch, self.spec.epochs):
            started_s, started_at_step = time.perf_counter(), self.last_step
            should_stop = self._train_epoch(epoch, first_step)
            if self.last_step == (epoch + 1) * per_epoch:
                images = (self.last_step - started_at_step) * self.spec.batch_size
                is_early = self._end_epoch(epoch + 1, images / (time.perf_counter() - started_s))
                if is_early:
                    return "early"
            if should_stop:
                return self._agreed_stop()
        return None

    def _train_epoch(self, epoch: int, first_step: int) -> bool:
        """Make one epoch's updates from where they are; return whether a stop was agreed."""
        self.learner.train()
        read_every = steps_between_looks(self.team.device)
        unread: list[tuple[int, float, StepOutcome]] = []
        for batch in self.feed.read(epoch, first_step=first_step):
            views_2BCHW = self.drawer.draw_pair(batch.images, sample_ids_B=batch.sample_ids, epoch=epoch)
            rate = self._learning_rate(batch.step)
            outcome = self.stepper(views_2BCHW, batch.labels, learning_rate=rate, wishes_stop=self._wishes_stop())
            self.last_step = batch.step + 1
            unread.append((self.last_step, rate, outcome))
            is_epoch_end = self.last_step % self.steps_per_epoch == 0
            if is_epoch_end or self.last_step % read_every == 0:
                should_stop = self._read(unread)
                unread = []
                if is_epoch_end or should_stop:
                    return should_stop
                self._keep()
        return False

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            peak=self.spec.peak_lr(),
            warmup_steps=round(self.spec.warmup_epochs() * self.steps_per_epoch),
            total_steps=self.total_steps,
        )

    def _read(self, unread: list[tuple[int, float, StepOutcome]]) -> bool:
        """Look at outcomes: refuse what is not finite, record the rest, return whether to stop."""
        should_stop = False
        for step, rate, outcome in unread:
            values = outcome.metrics()
            if not math.isfinite(values[metric_names.LOSS]):
                raise non_finite_loss(step, outcome.local_loss, self.team)
            if self.scribe is not None:
                if not self._has_stepped:
                    self.scribe.mark("first_step")
                    self._has_stepped = True
                self.scribe.metrics(step, {**values, metric_names.LR: rate})
            self._step_metrics = values
            should_stop = should_stop or outcome.should_stop
        return should_stop

    def _end_epoch(self, epoch: int, images_per_second: float) -> bool:
        """Evaluate where it is due and record; return whether the scheduler stops the trial."""
        values = {
            metric_names.EPOCH: float(epoch),
            metric_names.IMAGES_SEEN: float(self.last_step * self.spec.batch_size),
            metric_names.IMAGES_PER_SECOND: images_per_second,
        }
        every = self.spec.evaluation.knn_every_epochs
        if epoch == self.spec.epochs or (every and epoch % every == 0):
            try:
                values |= self.evaluation.online(self.learner)
            except NonFiniteH as error:
                raise non_finite_h(self.last_step, error) from error
        should_stop = False
        if self.scribe is not None:
            self.scribe.metrics(self.last_step, values)
            self._keep(values.get(metric_names.KNN_ACCURACY))  # behind the metrics: no resume loses them
            logger.info("epoch %d of %d: %s", epoch, self.spec.epochs, _in_words(values))
            if self.on_epoch is not None and epoch < self.spec.epochs:
                report = EpochReport(epoch=epoch, step=self.last_step, metrics=self._step_metrics | values)
                should_stop = self.on_epoch(report)
        return bool(self.team.agree_on(int(should_stop))) if self.on_epoch is not None else False

    def _finish(self, *, is_early: bool) -> None:
        """Measure what was learned, write the bundle and the completion marker."""
        if is_early:
            if self.scribe is not None:
                self.scribe.complete({"state": "stopped_early", "step": self.last_step}, drain_s=DRAIN_S)
            return
        if self.scribe is not None:
            self.scribe.mark("evaluate")
        self._keep_now()
        try:
            final = self.evaluation.final(self.learner, wishes_stop=self._wishes_stop)
        except Interrupted as wish:  # a later start evaluates anew, from the checkpoint just kept
            raise self._stopped(self._agreed_stop()) from wish
        except NonFiniteH as error:
            raise non_finite_h(self.last_step, error) from error
        if self.scribe is None or final is None:
            return
        self.scribe.metrics(self.last_step, final.metrics)
        self.scribe.mark("export")
        bundle = leave_products(
            self.scribe,
            spec=self.spec,
            dataset=self.dataset,
            encoder=self.learner.encoder,
            final=final,
            drawer=self.drawer,
        )
        marker = {
            "state": "succeeded",
            "step": self.last_step,
            "metrics": self._start_metrics | final.metrics,
            **bundle,
        }
        self.scribe.complete(marker, drain_s=DRAIN_S)

    # --- checkpoints and stops --------------------------------------------------------------------

    def _keep(self, score: float | None = None) -> None:
        if self.scribe is not None and self.scribe.is_checkpoint_due(score):
            self.scribe.checkpoint(capture(self.last_step, self.learner, self.optimizer, score=score))

    def _keep_now(self) -> None:
        if self.scribe is not None:
            self.scribe.checkpoint_now(capture(self.last_step, self.learner, self.optimizer))

    def _wishes_stop(self) -> bool:
        return self.scribe is not None and self.scribe.stop_wish is not None

    def _stopped(self, kind: StopKind) -> Stopped:
        message = f"stopped by a {kind} after step {self.last_step} of {self.total_steps}"
        return Stopped(message, kind=kind, step=self.last_step)

    def _agreed_stop(self) -> StopKind:
        wish = self.scribe.stop_wish if self.scribe is not None else None
        return "cancel" if self.team.agree_on(int(wish == "cancel")) else "pause"


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
