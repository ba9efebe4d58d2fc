"""Whole tensors from sharded ones and back, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from unmask.errors import UserError

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def parameters_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Parameters under the names that they had before any wrapper; a tied one once, under its first name."""
    named: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        named[name] = parameter
    return named


def whole(value: Tensor) -> Tensor:
    """The whole tensor, detached. Collective if it is sharded."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, model: Tensor) -> Tensor:
    """The value on the device of `model` and sharded as it is."""
    if isinstance(model, DTensor):
        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
    return value.to(model.device)


@torch.no_grad()
def copy_into(targets: dict[str, Tensor], values: dict[str, Tensor], what: str) -> None:
    """Copy whole tensors into possibly sharded ones of the same names.

    Raises:
        UserError: names or shapes differ.
    """
    wrong = sorted(targets.keys() ^ values.keys()) or sorted(
        name for name, target in targets.items() if target.shape != values[name].shape
    )
    if wrong:
        raise UserError(
            f"resuming: the {what} of the checkpoint do not fit this network ({len(wrong)} tensors, first {wrong[0]}); "
            "build the network that the run began with, or start a new run with --overwrite"
        )
    for name, target in targets.items():
        target.copy_(shard_like(values[name], target))
