"""A report in the forms that people and programs read: JSON, Markdown, and HTML that stands alone."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tune_spaces.reports.estimate import Estimate
from tune_spaces.reports.figure import draw_figure, draw_histograms
from tune_spaces.reports.report import Report
from tune_spaces.reports.settings import Setting

__all__ = ["render_html", "render_json", "render_markdown", "render_report"]

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]#|!"})


def render_report(report: Report) -> dict[str, bytes]:
    """Return file name -> bytes of every form, the figure as a picture among them."""
    forms = {
        "report.json": render_json(report),
        "report.md": render_markdown(report).encode(),
        "report.html": render_html(report).encode(),
        "report.png": draw_figure(report.figure, form="png"),
    }
    if report.analysis is not None:
        forms["report-histograms.png"] = draw_histograms(report.analysis, form="png")
    return forms


def render_json(report: Report) -> bytes:
    """Return the report's data."""
    return json.dumps(asdict(report), allow_nan=False).encode()


def render_markdown(report: Report) -> str:
    """Return the report as GitHub's Markdown; the user's text is inert in it."""
    return _environment(is_html=False).get_template("report.md.j2").render(report=report)


def render_html(report: Report) -> str:
    """Return the report as one page that loads nothing; the user's text is inert in it."""
    pictures = [_inline(draw_figure(report.figure, form="svg"))]
    if report.analysis is not None:
        pictures.append(_inline(draw_histograms(report.analysis, form="svg")))
    return _environment(is_html=True).get_template("report.html.j2").render(report=report, pictures=pictures)


def _inline(svg: bytes) -> Markup:
    """Return an SVG without its prologue; matplotlib has escaped the text in it."""
    text = svg.decode()
    return Markup(text[text.index("<svg") :])  # noqa: S704 - drawn here, from data


@cache
def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("tune_spaces.reports"),
        autoescape=is_html,  # noqa: S701 - in Markdown the `md` filter makes text inert
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"estimate": _estimate, "number": _number, "md": _inert, "seeds": _seeds}
    return environment


def _estimate(value: Estimate | None) -> str:
    if value is None:
        return "-"
    interval = "" if value.low is None or value.high is None else f" [{_number(value.low)}, {_number(value.high)}]"
    return f"{_number(value.mean)}{interval}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _seeds(setting: Setting) -> str:
    return f"{setting.num_seeds} of {setting.num_seeds_planned}" if setting.lacks_seeds else f"{setting.num_seeds}"


def _inert(value: Any) -> str:
    """Return text in which neither Markdown nor HTML means anything."""
    return html.escape(" ".join(str(value).split()), quote=False).translate(_SPECIAL)
