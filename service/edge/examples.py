"""Requests that the OpenAPI document shows; the tests post them as they stand."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["PRETRAIN_EXAMPLE", "SWEEP_EXAMPLE"]

PRETRAIN_EXAMPLE: Final[dict[str, Any]] = {
    "name": "emoji-demo",
    "kind": "pretrain",
    "labels": {"team": "vision"},
    "priority": 0,
    "spec": {
        "data": {"dataset": "openmoji", "image_size": 32},
        "views": {"preset": "simclr-cifar"},
        "encoder": {"name": "resnet18", "stem": "cifar", "width": 1},
        "projection_head": {"kind": "nonlinear", "dim": 128},
        "loss": {"kind": "nt_xent", "temperature": 0.5, "normalize": True},
        "optim": {"kind": "lars", "base_lr": 0.3, "lr_scaling": "linear", "weight_decay": 1e-6},
        "batch_size": 256,
        "epochs": 100,
        "seed": 0,
        "precision": "auto",
        "evaluation": {"knn_every_epochs": 5, "linear_probe": True},
        "scaling": {"num_workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0},
        "limits": {"wall_time_s": 36000, "max_attempts": 3},
    },
}

SWEEP_EXAMPLE: Final[dict[str, Any]] = {
    "name": "tau",
    "kind": "sweep",
    "spec": {
        "base": PRETRAIN_EXAMPLE["spec"],
        "study": "temperature",
        "space": {
            "loss.temperature": {"choice": [0.05, 0.1, 0.5, 1.0]},
            "batch_size": {"choice": [128, 256]},
            "epochs": {"choice": [10, 20]},
        },
        "search": "grid",
        "num_samples": 1,
        "scheduler": "asha",
        "metric": "knn_accuracy",
        "mode": "max",
        "max_concurrent_trials": 2,
        "seeds": [0],
        "limits": {"max_trials": 32, "wall_time_s": 7200},
    },
}
