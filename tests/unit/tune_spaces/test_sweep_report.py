"""Reports: the answer, the figure, the paper's numbers, and text that stays text."""

from __future__ import annotations

import html
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trainer.trial_table import TrialRow
from tune_spaces.plan import PlannedTrial, plan_sweep, planned_trials
from tune_spaces.reports.estimate import estimate
from tune_spaces.reports.figure import _margins, draw_figure
from tune_spaces.reports.observations import Observations
from tune_spaces.reports.render import render_html, render_json, render_markdown, render_report
from tune_spaces.reports.report import Report, build_report
from tune_spaces.reports.settings import compare, list_settings
from tune_spaces.spec import SweepSpec, complete
from tune_spaces.studies import Study, list_studies

DATA = {"data": {"dataset": "digits"}}
SEEDS = [0, 1, 2]
WIDE: dict[str, Any] = {"limits": {"max_trials": 1000}}
ALL_VALUES = ("linear_accuracy", "linear_accuracy_z", "knn_accuracy", "entropy", "contrastive_accuracy")


def report_of(
    value: Callable[[PlannedTrial], float], *, name: str = "tau", failed: tuple[str, ...] = (), **fields: Any
) -> Report:
    sweep = complete(SweepSpec.model_validate({"base": DATA, **fields}))
    rows = [
        TrialRow(
            id=trial.id,
            state="failed" if trial.id in failed else "succeeded",
            params=trial.params,
            metrics=dict.fromkeys((sweep.metric, *ALL_VALUES), value(trial)),
            reason={"message": "the loss became nan"} if trial.id in failed else None,
        )
        for trial in plan_sweep(sweep, lambda _: 4000).trials
    ]
    return build_report(sweep, rows, name=name)


def noise(trial: PlannedTrial, deviation: float) -> float:
    return random.Random(trial.id).gauss(0, deviation)


def by_temperature(trial: PlannedTrial) -> float:
    value = 0.9 - 0.2 * trial.spec.loss.temperature / 10 + 0.001 * trial.seed - 0.1 * (not trial.spec.loss.normalize)
    return value + noise(trial, 1e-6)


@pytest.mark.parametrize("study", ["loss", "augmentation-pairs", "colour-strength", "h-vs-z"])
def test_every_kind_of_figure_is_drawn_in_every_form(study: str) -> None:
    forms = render_report(report_of(lambda trial: 0.5 + 0.01 * trial.seed, study=study, size="smoke"))
    assert set(forms) == {"report.json", "report.md", "report.html", "report.png"}
    assert forms["report.png"].startswith(b"\x89PNG")
    assert b"<svg" in forms["report.html"]


@pytest.mark.parametrize("study", [study.name for study in list_studies()])
def test_every_study_has_an_answer_and_a_figure(study: str) -> None:
    report = report_of(lambda trial: 0.5 + 0.01 * trial.seed, study=study, size="smoke")
    assert json.loads(render_json(report))["sentence"] == report.sentence
    assert len(report.claims) >= 1
    assert any(value is not None for series in report.figure.series for value in series.values)


def test_the_answer_the_intervals_and_the_papers_numbers_stand_together() -> None:
    report = report_of(by_temperature, study="temperature", size="small")
    assert report.verdict == "holds"
    assert report.sentence.startswith("The paper's claim holds here")
    best = report.settings[0]
    assert best.params == {"loss.normalize": True, "loss.temperature": 0.05}
    estimate = best.metrics["linear_accuracy"]
    assert estimate is not None
    assert estimate.num == 3
    assert best.paper == {"entropy": 1.0, "contrastive_accuracy": 0.905, "linear_accuracy": 0.597}


def test_the_best_is_compared_with_the_others_paired_by_seed() -> None:
    report = report_of(by_temperature, study="temperature", size="small")
    assert len(report.comparisons) == len(report.settings) - 1
    assert all(comparison.is_told_apart for comparison in report.comparisons)


def test_what_differs_from_the_paper_is_listed_and_axes_are_not() -> None:
    differences = {
        one.path: (one.here, one.paper) for one in report_of(by_temperature, study="temperature").differences
    }
    assert differences["encoder.name"] == ("resnet18", "resnet50")
    assert differences["data.dataset"][0] == "digits"
    assert "optim.base_lr" not in differences
    assert "loss.temperature" not in differences


def test_what_is_only_a_picture_is_said_to_be() -> None:
    report = report_of(lambda _: 0.5, study="augmentation-pairs", size="smoke")
    assert report.paper_note is not None
    assert "picture" in report.paper_note
    assert all(setting.paper == {} for setting in report.settings)


def settings_table(page: str) -> list[list[str]]:
    """Return the cells of the Markdown table of settings, without its head."""
    lines = page.partition("## Settings")[2].strip().splitlines()
    rows = [line for line in lines[: lines.index("")] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_papers_number_stands_beside_ours_and_where_it_is_not_known_it_says_so() -> None:
    space = {"loss.temperature": {"choice": [0.1, 0.3]}, "loss.normalize": {"choice": [True]}}
    report = report_of(by_temperature, study="temperature", size="smoke", space=space)
    first, second = settings_table(render_markdown(report))
    assert first[-1] == "entropy 4.5, contrastive\\_accuracy 0.878, linear\\_accuracy 0.644"
    assert second[-1] == "not known", "the paper has no temperature 0.3"
    page = render_html(report)
    assert "<td>entropy 4.5, contrastive_accuracy 0.878, linear_accuracy 0.644</td>" in page
    assert page.count("<td>not known</td>") == 1


def test_a_sweep_of_ones_own_has_no_column_of_the_paper() -> None:
    report = report_of(lambda trial: trial.spec.epochs / 10, space={"epochs": {"choice": [1, 2]}})
    assert [len(row) for row in settings_table(render_markdown(report))] == [3, 3]
    assert "paper</th>" not in render_html(report)


def test_model_size_has_the_numbers_of_table_6_and_none_of_the_picture() -> None:
    report = report_of(lambda _: 0.5, study="model-size", size="paper")
    known = {setting.label: setting.paper for setting in report.settings if setting.paper}
    assert known == {
        f"method = simclr, encoder.name = resnet50, encoder.width = {width}": {"linear_accuracy": value}
        for width, value in ((1, 0.693), (2, 0.742), (4, 0.765))
    }
    assert "known only as a picture" in str(report.paper_note)


@pytest.mark.parametrize("study", list_studies(), ids=lambda study: study.name)
def test_every_form_has_the_whole_answer(study: Study) -> None:
    report = report_of(lambda trial: 0.5 + 0.01 * trial.seed, study=study.name, size="smoke")
    page, text = html.unescape(render_html(report)), render_markdown(report).replace("\\", "")
    for form in (page, html.unescape(text)):
        for words in (report.sentence, study.question, study.source, study.paper.finding, report.paper_note):
            assert " ".join(str(words).split()) in form
        assert "95" in form
        for claim in study.paper.claims:
            assert claim.text in form
        for difference in report.differences:
            assert difference.path in form
            assert str(difference.paper) in form
        assert all(comparison.label in form for comparison in report.comparisons)
    assert report.sentence.endswith(".")
    assert report.sentence.count(". ") == 0, "one sentence"
    assert any(word in report.sentence for word in ("holds here", "does not hold here", "can't be told"))
    assert {one.path for one in report.differences} >= {"data.dataset", "encoder.name"} - {*study.sizes["smoke"].space}


@pytest.mark.parametrize(
    ("study", "kind"),
    [
        ("batch-size-epochs", "bars"),
        ("temperature", "table"),
        ("loss", "bars"),
        ("augmentation-pairs", "heatmap"),
        ("colour-shortcut", "bars"),
        ("colour-strength", "lines"),
        ("model-size", "lines"),
        ("projection-head", "bars"),
        ("h-vs-z", "table"),
    ],
)
def test_a_study_is_shown_in_the_papers_form(study: str, kind: str) -> None:
    figure = report_of(lambda trial: 0.5 + 0.01 * trial.seed, study=study, size="smoke").figure
    assert figure.kind == kind
    cells = [cell for series in figure.series for cell in series.values if cell is not None]
    assert cells
    assert all(cell.low is not None for cell in cells), "each with its interval over seeds"


def test_pairs_form_a_heat_map_with_single_operations_on_its_diagonal() -> None:
    def value(trial: PlannedTrial) -> float:
        return float(len(trial.spec.views.resolved_operations()))

    figure = report_of(value, study="augmentation-pairs", size="smoke").figure
    assert figure.x == ("crop_resize", "color_jitter")
    cells = [[cell.mean for cell in series.values if cell is not None] for series in figure.series]
    assert cells == [[2.0, 4.0], [4.0, 3.0]]


def test_lines_have_the_supervised_column_beside_the_contrastive_one() -> None:
    figure = report_of(lambda _: 0.5, study="colour-strength", size="paper").figure
    assert figure.kind == "lines"
    assert {series.name: series.paper for series in figure.series} == {
        "simclr": (0.596, 0.61, 0.626, 0.632, 0.645),
        "supervised": (0.77, 0.767, 0.765, 0.757, 0.754),
    }


def test_histograms_are_shown_where_they_were_computed() -> None:
    sweep = complete(SweepSpec.model_validate({"base": DATA, "study": "colour-shortcut", "size": "smoke"}))
    arm = {"match": 0.75, "examples": [[[0.5, 0.5], [0.4, 0.6]]]}
    analysis = {"kind": "colour_histograms", "chance": 0.01, "num_images": 100, "arms": {"crop": arm}}
    forms = render_report(build_report(sweep, [], name="colour", analysis=analysis))
    assert "report-histograms.png" in forms
    assert b"the histogram of one view finds the other of 0.75" in forms["report.md"]


def test_failed_trials_are_told_and_not_averaged() -> None:
    report = report_of(lambda _: 0.5, failed=("t0001",), space={"epochs": {"choice": [1, 2]}})
    assert report.failures == {"t0001": "the loss became nan"}
    assert [setting.trials for setting in report.settings] == [("t0000",)]


def test_a_sweep_without_a_study_has_a_sentence_and_no_verdict() -> None:
    report = report_of(lambda trial: trial.spec.epochs / 10, space={"epochs": {"choice": [1, 2]}})
    assert (report.verdict, report.best) == (None, "epochs = 2")
    assert "no claim of the paper" in report.sentence


def test_nothing_that_finished_is_a_report_too() -> None:
    report = report_of(lambda _: 0.5, failed=("t0000",), space={"epochs": {"choice": [1]}})
    assert "nothing to compare" in report.sentence
    assert render_report(report)


def test_the_users_text_is_inert() -> None:
    name = "<script>alert(1)</script> | $x$ [a](b) {{ 7*7 }}"
    report = report_of(lambda _: 0.5, name=name, space={"epochs": {"choice": [1, 2]}})
    page = render_html(report)
    assert "<script" not in page
    assert "{{ 7*7 }}" in page
    title = render_markdown(report).splitlines()[0]
    assert "<script>" not in title
    assert "\\|" in title
    assert "\\[a\\]" in title


def test_the_page_loads_nothing() -> None:
    page = render_html(report_of(lambda _: 0.5, space={"epochs": {"choice": [1, 2]}}))
    assert "<svg" in page
    for loading in ("<script", "<link", "<img", "@import", " src="):
        assert loading not in page


def test_a_thousand_trials_are_reported() -> None:
    report = report_of(
        lambda trial: trial.spec.loss.temperature,
        space={"loss.temperature": {"uniform": [0.1, 1.0]}},
        search="random",
        num_samples=1000,
        limits={"max_trials": 1000},
    )
    assert len(json.loads(render_json(report))["settings"]) == 1000
    assert len(report.figure.x) <= 30


def jitter(strength: float) -> list[dict[str, Any]]:
    return [{"op": "crop_resize"}, {"op": "color_jitter", "strength": strength}]


@pytest.mark.parametrize(
    ("path", "choice", "labels"),
    [
        (
            "views.operations",
            [jitter(0.2), jitter(1.0)],
            ["crop_resize + color_jitter (strength 0.2)", "crop_resize + color_jitter (strength 1.0)"],
        ),
        ("optim.base_lr", [0.1234561, 0.1234562], ["0.1234561", "0.1234562"]),
        ("optim.base_lr", [0.1, 0.25], ["0.1", "0.25"]),
    ],
)
def test_settings_that_read_alike_are_not_one(path: str, choice: list[Any], labels: list[str]) -> None:
    values = {"t0000": 0.29, "t0001": 0.30, "t0002": 0.31}
    report = report_of(lambda trial: values.get(trial.id, 0.9), space={path: {"choice": choice}}, seeds=[0, 1, 2])
    assert [setting.label for setting in report.settings] == [f"{path} = {label}" for label in reversed(labels)]
    assert [len(setting.trials) for setting in report.settings] == [3, 3]
    assert [one.label for one in report.comparisons] == [f"{path} = {labels[0]}"]
    (series,) = report.figure.series
    assert list(report.figure.x) == labels
    assert [cell.mean for cell in series.values if cell] == pytest.approx([0.3, 0.9])


def test_no_bar_mixes_settings_that_differ_in_what_the_form_does_not_show() -> None:
    space = {"loss.kind": {"choice": ["nt_xent", "margin"]}, "optim.base_lr": {"choice": [0.1, 0.3]}}
    report = report_of(lambda trial: trial.spec.optim.base_lr, study="loss", size="smoke", space=space)
    assert report.figure.series_label == "loss.semi_hard, optim.base_lr"
    means = {series.name: [cell and cell.mean for cell in series.values] for series in report.figure.series}
    assert means == {"False, 0.1": [0.1, 0.1], "False, 0.3": [0.3, 0.3]}


def losses_by_learning_rate(num_rates: int, **fields: Any) -> Report:
    rates = [0.1 + place / 100 for place in range(num_rates)]
    space = {"loss.kind": {"choice": ["nt_xent", "margin"]}, "optim.base_lr": {"choice": rates}}
    return report_of(
        lambda trial: trial.spec.optim.base_lr, study="loss", size="smoke", **{"space": space, **WIDE, **fields}
    )


def test_the_figure_of_a_study_with_a_continuous_axis_is_a_table_of_the_best() -> None:
    """Every sample has its own learning rate, so each would be a series and the legend larger than the canvas."""
    space = {"loss.kind": {"choice": ["nt_xent", "margin"]}, "optim.base_lr": {"loguniform": [0.01, 10.0]}}
    report = losses_by_learning_rate(0, space=space, search="random", num_samples=40)
    figure = report.figure
    assert figure.kind == "table"
    (series,) = figure.series
    assert list(figure.x) == [setting.label for setting in report.settings[:30]]
    assert [cell and cell.mean for cell in series.values] == sorted(
        (setting.params["optim.base_lr"] for setting in report.settings[:30]), reverse=True
    )
    assert draw_figure(figure, form="png").startswith(b"\x89PNG")


@pytest.mark.parametrize(("num_groups", "kind"), [(10, "bars"), (11, "table")])
def test_groups_have_a_legend_as_long_as_each_has_its_own_colour(num_groups: int, kind: str) -> None:
    assert losses_by_learning_rate(num_groups).figure.kind == kind


@pytest.mark.parametrize(("num_rows", "kind"), [(30, "heatmap"), (31, "table")])
def test_a_heat_map_has_as_many_rows_as_have_room_for_their_names(num_rows: int, kind: str) -> None:
    rates = [0.1 + place / 100 for place in range(num_rows)]
    space = {"optim.base_lr": {"choice": rates}, "epochs": {"choice": [1, 2]}}
    assert report_of(lambda trial: trial.spec.optim.base_lr, space=space, **WIDE).figure.kind == kind


@pytest.mark.parametrize("size", ["smoke", "small", "paper"])
@pytest.mark.parametrize("study", list_studies(), ids=lambda study: study.name)
def test_no_study_of_its_own_has_more_groups_than_its_figure_shows(study: Study, size: str) -> None:
    assert report_of(lambda _: 0.5, study=study.name, size=size).figure.kind == study.figure.kind


def test_a_setting_that_lacks_seeds_does_not_come_before_one_that_has_them_all() -> None:
    """0.5 is worse under every seed, and its only trial that ended had the easiest one."""
    values = {0.1: [0.60, 0.70, 0.80], 0.5: [0.59, 0.69, 0.79]}
    sweep = complete(
        SweepSpec.model_validate({"base": DATA, "space": {"loss.temperature": {"choice": [0.1, 0.5]}}, "seeds": SEEDS})
    )
    rows = [
        TrialRow(
            id=trial.id,
            state="stopped_early" if trial.params["loss.temperature"] == 0.5 and trial.seed < 2 else "succeeded",
            params=trial.params,
            metrics={"knn_accuracy": values[trial.params["loss.temperature"]][trial.seed]},
        )
        for trial in planned_trials(sweep)
    ]
    report = build_report(sweep, rows, name="unequal")
    assert report.best == "loss.temperature = 0.1"
    assert [(setting.label, setting.num_seeds) for setting in report.settings] == [
        ("loss.temperature = 0.1", 3),
        ("loss.temperature = 0.5", 1),
    ]
    assert "1 setting that lacks seeds" in report.sentence
    assert [row[1] for row in settings_table(render_markdown(report))] == ["3", "1 of 3"]
    assert "<td>1 of 3</td>" in render_html(report)
    assert all("A setting that lacks seeds" in form for form in (render_html(report), render_markdown(report)))

    stopped = [replace(row, state="stopped_early") if row.id == "t0000" else row for row in rows]
    assert "no setting has all 3 seeds" in build_report(sweep, stopped, name="none is whole").sentence


def report_of_drawn_seeds(*, stopped: Callable[[TrialRow], bool] = lambda _: False) -> Report:
    """Return the report of a search that draws three seeds for 0.1, two for 0.2 and one for 0.5; 0.1 is the best."""
    space = {"loss.temperature": {"choice": [0.1, 0.2, 0.5]}, "seed": {"randint": [0, 99]}}
    sweep = complete(SweepSpec.model_validate({"base": DATA, "space": space, "search": "random", "num_samples": 6}))
    drawn = [(0.1, 3), (0.1, 14), (0.2, 15), (0.1, 92), (0.2, 65), (0.5, 35)]
    rows = [
        TrialRow(
            id=f"t{place:04d}",
            state="succeeded",
            params={"loss.temperature": temperature, "seed": seed},
            metrics={sweep.metric: 1 - temperature + seed / 10_000},
        )
        for place, (temperature, seed) in enumerate(drawn)
    ]
    rows = [replace(row, state="stopped_early") if stopped(row) else row for row in rows]
    return build_report(sweep, rows, name="drawn seeds")


def test_a_setting_of_which_fewer_seeds_were_drawn_lacks_none() -> None:
    report = report_of_drawn_seeds()
    assert [setting.label[-3:] for setting in report.settings] == ["0.1", "0.2", "0.5"]
    assert [setting.num_seeds_planned for setting in report.settings] == [3, 2, 1]
    assert report.num_seeds_planned == 3
    assert "seeds left behind" not in report.sentence
    assert [row[1] for row in settings_table(render_markdown(report))] == ["3", "2", "1"]
    for form in (render_html(report), render_markdown(report)):
        assert "A setting that lacks seeds" not in form
    assert [one["num_seeds_planned"] for one in json.loads(render_json(report))["settings"]] == [3, 2, 1]


def test_the_best_is_not_the_setting_with_the_most_seeds_drawn() -> None:
    space = {"loss.temperature": {"choice": [0.1, 0.2]}, "seed": {"randint": [0, 99]}}
    sweep = complete(SweepSpec.model_validate({"base": DATA, "space": space, "search": "random", "num_samples": 7}))
    drawn = [(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 4), (0.2, 5), (0.2, 6), (0.2, 7)]
    rows = [
        TrialRow(
            id=f"t{place:04d}",
            state="succeeded",
            params={"loss.temperature": temperature, "seed": seed},
            metrics={sweep.metric: {0.1: 0.91, 0.2: 0.5075}[temperature]},
        )
        for place, (temperature, seed) in enumerate(drawn)
    ]
    report = build_report(sweep, rows, name="best of fewer seeds")
    assert report.best == "loss.temperature = 0.1"
    assert "0.91" in report.sentence
    assert "lack" not in report.sentence


def test_a_setting_lacks_the_seeds_that_were_drawn_for_it_and_did_not_end() -> None:
    report = report_of_drawn_seeds(stopped=lambda row: row.id == "t0000")
    cells = [(setting.label[-3:], setting.num_seeds, setting.num_seeds_planned) for setting in report.settings]
    assert cells == [("0.2", 2, 2), ("0.5", 1, 1), ("0.1", 2, 3)]
    assert "1 setting that lacks seeds left behind" in report.sentence
    assert [row[1] for row in settings_table(render_markdown(report))] == ["2", "1", "2 of 3"]
    assert all("A setting that lacks seeds" in form for form in (render_html(report), render_markdown(report)))

    none_whole = report_of_drawn_seeds(stopped=lambda row: row.id in ("t0000", "t0002", "t0005"))
    assert "no setting has all of its seeds" in none_whole.sentence


@pytest.mark.parametrize(("num_settings", "num_seeds"), [(3, 3), (10, 3), (20, 5)])
def test_of_settings_that_are_equal_hardly_a_sweep_tells_any_apart(num_settings: int, num_seeds: int) -> None:
    """The best is picked from the numbers that it is compared by, and there are many to compare."""
    space = {"optim.base_lr": {"choice": [0.1 + place / 100 for place in range(num_settings)]}}
    sweep = complete(SweepSpec.model_validate({"base": DATA, "space": space, "seeds": list(range(num_seeds)), **WIDE}))
    trials = list(planned_trials(sweep))
    draw = random.Random(0)
    told = 0
    for _ in range(200):
        rows = [
            TrialRow(id=one.id, state="succeeded", params=one.params, metrics={"knn_accuracy": draw.gauss(0.5, 0.01)})
            for one in trials
        ]
        observations = Observations(sweep, rows)
        settings = list_settings(observations, sweep, None, [sweep.metric])
        told += any(one.is_told_apart for one in compare(settings, observations, sweep))
    assert told <= 0.05 * 200


def test_every_other_is_compared_and_the_correction_is_said() -> None:
    def value(trial: PlannedTrial) -> float:
        return trial.spec.optim.base_lr + noise(trial, 1e-6)

    space = {"optim.base_lr": {"choice": [0.1 + place / 100 for place in range(40)]}}
    report = report_of(value, space=space, seeds=SEEDS, **WIDE)
    assert len(report.comparisons) == 39
    assert "told apart from 39 of 39 others" in report.sentence
    for form in (render_markdown(report), html.unescape(render_html(report))):
        assert "780 pairs" in form
        assert "Bonferroni" in form


def test_of_two_settings_the_interval_is_the_usual_one() -> None:
    report = report_of(
        lambda trial: trial.spec.epochs / 10 + [0.1, 0.2, 0.4][trial.seed] * trial.spec.epochs,
        space={"epochs": {"choice": [1, 2]}},
        seeds=SEEDS,
    )
    (comparison,) = report.comparisons
    assert comparison.difference == estimate([0.2, 0.3, 0.5])


def test_a_whole_part_as_an_axis_is_read_by_its_fields() -> None:
    space = {"loss": {"choice": [{"kind": "nt_xent"}, {"kind": "margin", "semi_hard": True}, {"kind": "margin"}]}}

    def value(trial: PlannedTrial) -> float:
        kind = {"nt_xent": 0.6, "margin": 0.4, "nt_logistic": 0.0}
        return kind[trial.spec.loss.kind] + 0.1 * trial.spec.loss.semi_hard + noise(trial, 0.001)

    report = report_of(value, study="loss", size="smoke", space=space, seeds=SEEDS)
    assert [setting.paper for setting in report.settings] == [
        {"linear_accuracy": paper} for paper in (0.639, 0.575, 0.509)
    ]
    assert report.figure.x == ("nt_xent", "margin")
    means = [[cell and round(cell.mean, 1) for cell in series.values] for series in report.figure.series]
    assert means == [[0.6, 0.4], [None, 0.5]]
    assert [claim.verdict for claim in report.claims] == ["cannot_tell", "holds", "holds"]
    assert "loss.kind" not in [one.path for one in report.differences]


def test_first_and_last_are_by_size_however_a_space_is_written() -> None:
    def value(trial: PlannedTrial) -> float:
        gain = {"simclr": 0.2, "supervised": 0.1}[trial.spec.method]
        return 0.5 + gain * (trial.spec.encoder.name == "resnet20") + noise(trial, 0.001)

    space = {"method": {"choice": ["simclr", "supervised"]}, "encoder.name": {"choice": ["resnet20", "resnet8"]}}
    report = report_of(value, study="model-size", size="smoke", space=space)
    assert report.verdict == "holds"
    assert [label.split(",")[0] for label in report.figure.x] == ["resnet8", "resnet20"]


@pytest.mark.parametrize("metric", ["loss", "contrastive_accuracy", "linear_accuracy_z", "uniformity"])
def test_the_papers_claims_are_not_judged_by_what_says_nothing_of_h(metric: str) -> None:
    base = DATA | {"evaluation": {"probe_z": True}}
    document = {"base": base, "study": "projection-head", "size": "smoke", "metric": metric, "mode": "min"}
    sweep = complete(SweepSpec.model_validate(document))
    rows = [
        TrialRow(
            id=trial.id,
            state="succeeded",
            params=trial.params,
            metrics={
                "linear_accuracy_z": 0.3 + noise(trial, 0.001),
                metric: {"none": 4.0, "linear": 0.6, "nonlinear": 0.8}[trial.spec.projection_head.kind],
                "linear_accuracy": 0.5,
            },
        )
        for trial in planned_trials(sweep)
    ]
    report = build_report(sweep, rows, name="by another")
    about_head, about_none, about_z = report.claims
    for claim in (about_head, about_none):
        assert (claim.verdict, claim.difference) == ("cannot_tell", None)
        assert metric in str(claim.reason)
    assert about_z.reason is None, "it names its metrics itself"
    assert about_z.difference is not None
    assert report.verdict == "cannot_tell"
    assert f"{metric} is no accuracy of h" in report.sentence
    assert f"{metric} is no accuracy of h" in render_html(report)


def test_a_claim_is_of_higher_accuracy_though_the_sweep_looks_for_the_lowest() -> None:
    report = report_of(by_temperature, study="temperature", size="smoke", mode="min")
    assert report.verdict == "holds"


def test_a_seed_as_an_axis_is_one_setting_over_its_seeds() -> None:
    report = report_of(lambda trial: trial.seed / 10, space={"seed": {"choice": [5, 6, 7]}})
    assert report.figure.x == ("the base",)
    (series,) = report.figure.series
    assert series.values == (estimate([0.5, 0.6, 0.7]),)


def test_a_seed_beside_another_axis_is_no_axis_of_the_figure() -> None:
    space = {"seed": {"choice": [5, 6]}, "epochs": {"choice": [1, 2]}}
    figure = report_of(lambda trial: trial.spec.epochs + trial.seed / 10, space=space).figure
    assert (figure.kind, figure.x) == ("bars", ("1", "2"))
    assert [cell.num for cell in figure.series[0].values if cell] == [2, 2]


def test_a_bar_of_one_seed_has_no_mark_of_an_interval() -> None:
    figure = report_of(lambda trial: trial.spec.epochs / 10, space={"epochs": {"choice": [1, 2]}}).figure
    (series,) = figure.series
    assert all(cell is not None and cell.low is None for cell in series.values)
    assert all(map(math.isnan, _margins(series.values)))
    assert draw_figure(figure, form="png").startswith(b"\x89PNG")


@pytest.mark.parametrize("size", ["smoke", "small"])
def test_another_temperature_and_other_views_than_the_papers_are_told(size: str) -> None:
    report = report_of(lambda _: 0.5, study="loss", size=size)
    differences = {one.path: (one.here, one.paper) for one in report.differences}
    assert differences["loss.temperature"] == (0.5, 0.1)
    assert differences["views.preset"] == ("simclr-cifar", "simclr")


@pytest.mark.parametrize("study", list_studies(), ids=lambda study: study.name)
def test_of_the_papers_size_nothing_but_the_data_set_differs(study: Study) -> None:
    report = build_report(
        complete(SweepSpec.model_validate({"base": DATA, "study": study.name, "size": "paper"})), [], name="paper"
    )
    assert [one.path for one in report.differences] == ["data.dataset"]


def test_no_projection_head_has_no_dimension_of_its_own() -> None:
    def value(trial: PlannedTrial) -> float:
        return {"none": 0.3, "linear": 0.4, "nonlinear": 0.5}[trial.spec.projection_head.kind]

    figure = report_of(value, study="projection-head", size="small").figure
    assert figure.x == ("32", "128", "512", "width of h")
    cells = {one.name: [cell is not None for cell in one.values] for one in figure.series}
    assert cells == {
        "none": [False, False, False, True],
        "linear": [True, True, True, False],
        "nonlinear": [True, True, True, False],
    }
