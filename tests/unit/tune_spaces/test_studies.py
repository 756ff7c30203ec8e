"""The catalogue: every study plans at every size, and says what the paper found as it is printed."""

from __future__ import annotations

import json

import pytest

from trainer import metric_names
from trainer.spec import spec_problems
from tune_spaces.catalogue import describe_study
from tune_spaces.overrides import spec_paths
from tune_spaces.plan import plan_sweep
from tune_spaces.problems.sweep import sweep_problems
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import SIZES, Study, get_study, list_studies

STUDIES = [pytest.param(study, id=study.name) for study in list_studies()]
DATA = {"data": {"dataset": "digits"}}


def test_the_catalogue_is_complete() -> None:
    assert {study.name for study in list_studies()} == {
        "batch-size-epochs",
        "temperature",
        "loss",
        "augmentation-pairs",
        "colour-shortcut",
        "colour-strength",
        "model-size",
        "projection-head",
        "h-vs-z",
    }


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_study_plans_sound_trials_at_every_size(study: Study, size: str) -> None:
    sweep = SweepSpec.model_validate({"base": DATA, "study": study.name, "size": size})
    assert sweep_problems(sweep, has_labels=True) == []
    trials = plan_sweep(sweep, lambda _: 50_000).trials
    assert trials
    assert all(spec_problems(trial.spec) == [] for trial in trials)


@pytest.mark.parametrize("study", STUDIES)
def test_the_smoke_size_is_small(study: Study) -> None:
    trials = plan_sweep(
        SweepSpec.model_validate({"base": DATA, "study": study.name, "size": "smoke"}), lambda _: 4000
    ).trials
    assert len(trials) <= 12
    assert all(trial.spec.data.image_size <= 32 and trial.spec.epochs <= 3 for trial in trials)
    assert {trial.spec.encoder.name for trial in trials} <= {"resnet8", "resnet14", "resnet20"}


def test_a_size_that_is_made_for_a_gpu_warns_where_it_would_run_on_none() -> None:
    def warnings(size: str, **scaling: int) -> tuple[str, ...]:
        document = {"base": DATA | {"scaling": scaling}, "study": "temperature", "size": size}
        return plan_sweep(SweepSpec.model_validate(document), lambda _: 50_000).warnings

    assert ["set base.scaling.gpus_per_worker to 1" in warning for warning in warnings("small")] == [True]
    assert warnings("small", gpus_per_worker=1) == warnings("smoke") == ()


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_speaks_of_fields_and_metrics_that_exist(study: Study) -> None:
    paths = [*study.figure.x, *study.figure.series, *study.paper.settings]
    paths += [path for claim in study.paper.claims for term in claim.terms for path in term.where]
    assert {path.partition("#")[0] for path in paths} <= spec_paths()
    metrics = {term.metric for claim in study.paper.claims for term in claim.terms if term.metric}
    assert metrics | {study.metric, *study.figure.metrics} <= set(metric_names.ALL_METRICS)
    numbers = study.paper.numbers
    if numbers is not None:
        assert set(numbers.columns) <= spec_paths() | set(metric_names.ALL_METRICS)
        assert all(len(row) == len(numbers.columns) for row in numbers.rows)


@pytest.mark.parametrize("study", STUDIES)
def test_claims_of_a_difference_weigh_their_sides_equally(study: Study) -> None:
    for claim in study.paper.claims:
        assert sum(term.weight for term in claim.terms) == 0


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("batch-size-epochs", (8192, 800, "linear", 0.69)),
        ("temperature", (True, 0.1, 4.5, 0.878, 0.644)),
        ("loss", ("nt_xent", False, 0.639)),
        ("colour-strength", ("supervised", 1.0, True, 0.754)),
        ("model-size", ("simclr", "resnet50", 4, 0.765)),
        ("h-vs-z", (0.993, 0.974, 0.676, 0.256, 0.995, 0.596, 0.966, 0.563)),
    ],
)
def test_the_papers_numbers_are_as_printed(name: str, row: tuple[object, ...]) -> None:
    study = get_study(name)
    assert study is not None
    assert study.paper.numbers is not None
    assert row in study.paper.numbers.rows


@pytest.mark.parametrize(
    ("name", "num_rows", "total"),
    [
        ("batch-size-epochs", 48, 31.712),
        ("temperature", 6, 3.57),
        ("loss", 5, 2.818),
        ("colour-strength", 10, 6.922),
        ("model-size", 3, 2.2),
        ("h-vs-z", 1, 0.563),
    ],
)
def test_no_number_of_the_paper_is_missing_or_changed(name: str, num_rows: int, total: float) -> None:
    """The last column of each table adds up to what the paper's does."""
    study = get_study(name)
    assert study is not None
    assert study.paper.numbers is not None
    assert len(study.paper.numbers.rows) == num_rows
    assert sum(row[-1] for row in study.paper.numbers.rows) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("name", ["augmentation-pairs", "projection-head", "colour-shortcut"])
def test_what_is_only_a_picture_has_no_numbers(name: str) -> None:
    study = get_study(name)
    assert study is not None
    assert study.paper.numbers is None


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_says_what_it_asks_varies_fixes_measures_and_what_the_paper_found(study: Study) -> None:
    document = describe_study(study)
    assert document["question"].endswith("?")
    assert "arXiv 2002.05709" in document["source"]
    assert document["metric"] in metric_names.ALL_METRICS
    assert document["figure"]["kind"] in ("bars", "heatmap", "lines", "table")
    assert len(document["paper"]["finding"]) > 40
    assert document["paper"]["claims"]
    assert tuple(document["sizes"]) == SIZES
    assert document["axes"] or study.name == "h-vs-z"  # one setting, looked at in two places
    for size in document["sizes"].values():
        assert {"data", "encoder", "batch_size", "epochs"} <= size["fixed"].keys()
        assert size["cost"]


@pytest.mark.parametrize(("name", "place"), [("colour-strength", "Table 1"), ("model-size", "Fig. 7")])
@pytest.mark.parametrize("size", SIZES)
def test_the_studies_that_compare_with_labels_train_the_supervised_column(name: str, place: str, size: str) -> None:
    study = get_study(name)
    assert study is not None
    assert place in study.source
    trials = plan_sweep(SweepSpec.model_validate({"base": DATA, "study": name, "size": size}), lambda _: 50_000).trials
    by_method: dict[str, list[dict[str, object]]] = {"simclr": [], "supervised": []}
    for trial in trials:
        by_method[trial.spec.method].append({key: value for key, value in trial.params.items() if key != "method"})
    assert by_method["simclr"] == by_method["supervised"] != []


@pytest.mark.parametrize("study", STUDIES)
def test_the_document_is_json_with_the_trials_of_each_size(study: Study) -> None:
    document = json.loads(json.dumps(describe_study(study)))
    assert document["name"] == study.name
    assert document["description"]
    assert all(document["sizes"][size]["trials"] >= 1 for size in SIZES)
