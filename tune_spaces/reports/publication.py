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
    sweep: SweepSpec, document: JobDocument, storage: Storage, rows: Sequence[TrialRow], *, limit: str | None = None
) -> dict[str, str]:
    """Write the report in every form and return MLflow path -> storage key; a sweep outlives a failed one.

    `limit` is what ended the sweep before all trials had run, in words.
    """
    keys: dict[str, str] = {}
    try:
        analysis = _analyse(sweep, document)
        report = build_report(sweep, rows, name=document.name, limit=limit, analysis=analysis)
        for name, data in render_report(report).items():
            key = experiment_key(document.experiment_id, name)
            storage.write(key, data)
            keys[f"report/{name}"] = key
    except Exception:  # the trials are done and their encoders are there: a report is not worth them
        logger.exception("the report could not be written")
    return keys


def _analyse(sweep: SweepSpec, document: JobDocument) -> dict[str, Any] | None:
    study = get_study(sweep.study) if sweep.study else None
    if study is None or study.analysis is None:
        return None
    from tune_spaces.reports.colour_histograms import compare_histograms  # torch, for this study only

    return compare_histograms(sweep.base_spec(), cache_dir=document.cache_dir, datasets_dir=document.datasets_dir)
