"""The report of a sweep, written into storage by its driver."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from trainer.context import JobDocument, experiment_key
from trainer.storage import Storage
from trainer.trial_table import TrialRow
from tune_spaces.reports.render import render_report
from tune_spaces.reports.report import build_report
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import get_study

__all__ = ["publish_report"]

logger = logging.getLogger(__name__)


def publish_report(
    sweep: SweepSpec, document: JobDocument, storage: Storage, rows: Sequence[TrialRow]
) -> dict[str, bytes]:
    """Write the report in every form and return it as artifacts; a sweep outlives a failed one."""
    try:
        analysis = _analyse(sweep, document)
        report = build_report(sweep, rows, name=document.name, analysis=analysis)
        forms = render_report(report)
        for name, data in forms.items():
            storage.write(experiment_key(document.experiment_id, name), data)
    except Exception:  # the trials are done and their encoders are there: a report is not worth them
        logger.exception("the report could not be written")
        return {}
    return {f"report/{name}": data for name, data in forms.items()}


def _analyse(sweep: SweepSpec, document: JobDocument) -> dict[str, Any] | None:
    study = get_study(sweep.study) if sweep.study else None
    if study is None or study.analysis is None:
        return None
    from tune_spaces.reports.colour_histograms import compare_histograms  # torch, for this study only

    return compare_histograms(sweep.base_spec(), cache_dir=document.cache_dir, datasets_dir=document.datasets_dir)
