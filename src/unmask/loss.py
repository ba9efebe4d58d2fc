"""Losses: what a denoiser is trained on, per example and in nats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import State
from unmask.rng import Rng


class Loss(ABC):
    """An unbiased per-example estimate of a training objective.

    A subclass is a frozen keyword-only dataclass. `bound` says whether the expectation is an upper bound of -log p(x_0)
    under the model; only such losses may be reported as likelihoods, and the bound contract holds them to it.

    The sum over sites is returned, never a mean: the trainer divides by the number of real tokens of the whole step.
    """

    bound: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        """Nats per example, shape (b,).

        Args:
            denoiser: the model.
            x0: clean data (b, *s).
            rng: with `rows` set to the global sample indices, so that corruption does not depend on the batching.
            attention_mask: True at real tokens; padding is neither corrupted nor scored.
            cond: handed on to the denoiser.
        """


def require(owner: object, part: object, kind: type, why: str) -> None:
    """Refuse a part of another kind by name, where a loss or sampler is made, not deep inside its first step.

    Raises:
        TypeError: `part` is not a `kind`; the message says why one is needed.
    """
    if not isinstance(part, kind):
        raise TypeError(f"{type(owner).__name__}: met {type(part).__name__}, wanted {kind.__name__}: {why}")


def sum_sites(
    values: Float[Tensor, " n"], where: Bool[Tensor, "b *s"], weight: Float[Tensor, " b"] | None = None
) -> Float[Tensor, " b"]:
    """Per-row sums of values (n,) that stand at the True sites of `where`, times the row's weight; float64."""
    row = where.flatten(1).nonzero()[:, 0]
    total = torch.zeros(where.shape[0], dtype=torch.float64, device=values.device)
    total = total.index_add(0, row, values.double())
    return total if weight is None else total * weight


def row_positions(attention_mask: Bool[Tensor, "b l"] | None, rng: Rng) -> Rng:
    """The stream whose sites count real tokens only, so that padding on either side changes no draw."""
    if attention_mask is None:
        return rng
    return rng.positions((attention_mask.cumsum(1) - 1).clamp(min=0))
