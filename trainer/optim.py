"""The optimisers, and their state as named tensors.

Parameters of one dimension or none (biases and the scales of norms, the head's included) are
never decayed, and LARS does not adapt them.
"""
# ruff: noqa: SLF001 - torch's foreach functions have no public names

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from trainer.spec import OptimSpec

__all__ = ["Lars", "build_optimizer", "load_optimizer_tensors", "optimizer_tensors", "set_learning_rate"]


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), as the paper's reference code has it.

    For each parameter w with gradient g, buffer v, and weight decay of its group:

        g = g + weight_decay w
        trust = trust_coefficient |w| / |g|, or 1 if w or g is all zeros or the group is not adapted
        v = momentum v + lr trust g
        w = w - v

    The rate is inside v: a change of rate acts on what comes, not on what v has gathered. Without
    weight decay the rate is adapted all the same.

    Args:
        params: Parameters, or groups of them; a group may set any option below for itself.
        lr: Learning rate, >= 0.
        momentum: Of v, in [0, 1).
        weight_decay: Added to the gradient, >= 0.
        trust_coefficient: Ratio of the length of a step to that of w, at lr 1; > 0.
        is_adapted: Whether `trust` is in force.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        is_adapted: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "is_adapted": is_adapted,
        }
        super().__init__(params, options)

    # As they are inside: torch wraps these two to keep its compiler off them, and imports the compiler
    # for that at their first call, 1.4 s of each worker's start.
    add_param_group = Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined] # functools.wraps leaves it
    zero_grad = Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined] # likewise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        rates = group["lr"] * self._trust(parameters, gradients, group)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, torch._foreach_mul(gradients, list(rates.unbind())))
        torch._foreach_sub_(parameters, buffers)

    @staticmethod
    def _trust(parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> Tensor:
        if not group["is_adapted"]:
            return gradients[0].new_ones(len(gradients))
        # on the device, without asking for a number: nothing waits
        lengths = torch.stack(torch._foreach_norm(parameters))
        gradient_lengths = torch.stack(torch._foreach_norm(gradients))
        ratios: Tensor = group["trust_coefficient"] * lengths / gradient_lengths
        return ratios.where((lengths > 0) & (gradient_lengths > 0), 1.0)


def build_optimizer(spec: OptimSpec, module: nn.Module) -> Optimizer:
    """Return the optimiser that `spec` names, for the parameters of `module` that are trained.

    Its learning rate is 0 until `set_learning_rate` is called, as before every step.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    decayed: dict[str, Any] = {"params": weights, "weight_decay": spec.weight_decay}
    exempt: dict[str, Any] = {"params": others, "weight_decay": 0.0}
    if spec.kind == "lars":
        exempt["is_adapted"] = False
    groups = [group for group in (decayed, exempt) if group["params"]]
    if spec.kind == "lars":
        return Lars(groups, lr=0.0, momentum=spec.momentum, trust_coefficient=spec.trust_coefficient)
    if spec.kind == "sgd":
        return SGD(groups, lr=0.0, momentum=spec.momentum)
    return AdamW(groups, lr=0.0)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of the next update for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the state of `optimizer` as `{"<parameter name>/<state key>": tensor}`, not copied.

    Empty before the first update. The options (rates, decay) come from the spec and are left out.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the state of `optimizer` by a copy of `tensors`, bit for bit.

    Raises:
        ValueError: If a tensor belongs to no parameter of `module`.
    """
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(f"the optimiser state {path!r} belongs to no parameter of {type(module).__name__}")
        if tensor.shape == parameter.shape and tensor.dim() > 0:
            # of the parameter's device and memory format, in which updates are fast
            optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        else:
            optimizer.state[parameter][key] = tensor.clone()
