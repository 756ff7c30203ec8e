"""The demonstration: one pretraining through the API, and what its encoder is worth."""

from __future__ import annotations

import contextlib
import copy
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from service.cli.output import plain
from service.cli.progress import show_progress
from service.client import Client, ClientError, Experiment
from service.embedded.addresses import free_ports, is_free
from service.embedded.stack import Report
from service.embedded.supervisor import running_stack
from service.settings import Settings
from trainer.metric_names import KNN_ACCURACY, LINEAR_ACCURACY, RANDOM_ENCODER_KNN_ACCURACY, RAW_PIXEL_KNN_ACCURACY

__all__ = ["DEMO", "DemoResult", "print_result", "run_demo"]

DEMO: Final[dict[str, Any]] = {
    "name": "demo",
    "kind": "pretrain",
    "labels": {"purpose": "demo"},
    "spec": {
        "data": {"dataset": "openmoji", "image_size": 24},
        "encoder": {"name": "resnet8"},
        # A small data set and a few minutes: small batches for more updates, and an optimiser that
        # needs no long warm-up. LARS and large batches are for long runs.
        "loss": {"temperature": 0.2},
        "optim": {"kind": "adamw", "base_lr": 0.002, "lr_scaling": "none"},
        "batch_size": 128,
        "epochs": 70,
        "evaluation": {"knn_every_epochs": 10, "linear_probe": True},
        "scaling": {"num_workers": 2, "cpus_per_worker": 1},
    },
}
_METRICS: Final = (KNN_ACCURACY, LINEAR_ACCURACY, RAW_PIXEL_KNN_ACCURACY, RANDOM_ENCODER_KNN_ACCURACY)
_MEANINGS: Final = {
    KNN_ACCURACY: "kNN on the trained representation h",
    LINEAR_ACCURACY: "linear probe on h",
    RAW_PIXEL_KNN_ACCURACY: "kNN on the pixels themselves",
    RANDOM_ENCODER_KNN_ACCURACY: "kNN on the same encoder, untrained",
}


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What came out. Accuracies are 0..1, on the same validation images."""

    experiment_id: str
    state: str
    reason: dict[str, Any] | None
    metrics: dict[str, float | None]
    encoder: Path | None
    encoder_sha256: str | None

    @property
    def is_better(self) -> bool:
        """Return whether kNN on h beats both baselines."""
        h = self.metrics.get(KNN_ACCURACY)
        baselines = [self.metrics.get(name) for name in (RAW_PIXEL_KNN_ACCURACY, RANDOM_ENCODER_KNN_ACCURACY)]
        return h is not None and all(baseline is not None and h > baseline for baseline in baselines)

    def document(self) -> dict[str, Any]:
        """Return it as JSON, each metric under its name."""
        members = asdict(self)
        metrics = members.pop("metrics")
        encoder = str(self.encoder) if self.encoder else None
        return {**members, **metrics, "encoder": encoder, "is_better": self.is_better}


def run_demo(settings: Settings, *, seed: int, epochs: int | None, report: Report, console: Console) -> DemoResult:
    """Start the stack, pretrain by `DEMO` (or for so many epochs), save the encoder, and end the stack again.

    Raises:
        SettingsError, StackFailed: As `running_stack`; a port that others hold is no obstacle.
        ClientError: If the service refuses.
    """
    if not is_free(settings.port, host=settings.host):
        settings = settings.model_copy(update={"port": free_ports(1)[0]})
    token = settings.bootstrap_token.get_secret_value() if settings.bootstrap_token else None
    with (
        running_stack(settings, command="demo", report=report) as stack,
        Client(stack.settings.base_url, token=token) as client,
    ):
        document = _document(seed, epochs)
        experiment = client.submit(document)
        report("Demo", f"{experiment['id']}: {document['spec']['epochs']} epochs of SimCLR on openmoji, seed {seed}")
        try:
            experiment = show_progress(client, experiment, console=console)
        except BaseException:
            # It is not to come back at the next start: nobody waits for it any more.
            with contextlib.suppress(ClientError), Client(client.url, token=token, retry_for_s=1.0) as last_call:
                last_call.cancel(experiment["id"])
            raise
        return _result(client, experiment, folder=settings.home_dir / "demo")


def _document(seed: int, epochs: int | None) -> dict[str, Any]:
    document = copy.deepcopy(DEMO)
    document["spec"] |= {"seed": seed} | ({} if epochs is None else {"epochs": epochs})
    return document


def _result(client: Client, experiment: Experiment, *, folder: Path) -> DemoResult:
    trial = next(client.trials(experiment["id"]), None)
    found = trial["metrics"] if trial else {}
    path = sha256 = None
    if experiment["state"] == "succeeded":
        path = folder / f"encoder-{experiment['id']}.zip"
        sha256 = client.download_encoder(experiment["id"], path)
    return DemoResult(
        experiment_id=experiment["id"],
        state=str(experiment["state"]),
        reason=experiment["reason"],
        metrics={name: found.get(name) for name in _METRICS},
        encoder=path,
        encoder_sha256=sha256,
    )


def print_result(result: DemoResult, console: Console) -> None:
    """Print the result for a person."""
    if result.encoder is None:
        reason = (result.reason or {}).get("message", "no reason was recorded")
        console.print(plain(f"\nThe experiment {result.experiment_id} is {result.state}: {reason}"), style="red")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in result.metrics.items():
        table.add_row(name, "-" if value is None else f"{value:.4f}", _MEANINGS[name])
    console.print()
    console.print(table)
    verdict = "beats both" if result.is_better else "does NOT beat both"
    console.print(
        plain(f"\nh {verdict}: the pixels it was made from and the same encoder before training."), soft_wrap=True
    )
    unpacked = result.encoder.with_suffix("")
    lines = (
        f"\nThe encoder is in {result.encoder}. To use it:\n",
        f"    import shutil, sys; shutil.unpack_archive({str(result.encoder)!r}, {str(unpacked)!r})",
        f"    sys.path.insert(0, {str(unpacked)!r}); from encoder import load_encoder, to_input",
        f"    f = load_encoder({str(unpacked)!r})  # h = f(to_input(images)), images: uint8 tensor (B, H, W, 3)\n",
        "To open its curves in the MLflow UI and the Ray dashboard again (the addresses are printed):\n",
        f"    SIMCLR_HOME={shlex.quote(str(result.encoder.parent.parent))} make serve",
    )
    for line in lines:
        console.print(plain(line), soft_wrap=True)
