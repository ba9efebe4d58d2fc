"""How a canvas is filled: the settings that every text command shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

import torch
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.errors import UserError
from unmask.law import Law, SiteLaw, State
from unmask.sampler import Sampler
from unmask.select import OrderName


class SamplingOptions(TypedDict, total=False):
    """The keywords that `generate`, `infill` and `stream` share; `SamplingConfig` documents and checks them."""

    num_steps: int | None
    seed: int
    temperature: float
    top_k: int | None
    top_p: float | None
    block_size: int | None
    order: str | None
    threshold: float | None
    remask: float | None
    regex: str | None
    json_schema: str | None
    sampler: Sampler | None


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a canvas is filled.

    Args:
        num_steps: denoising steps in all; None: one per site to fill, at most 64. An autoregressive model always takes
            one per site.
        seed: sample i depends on the seed and on i, not on how many samples are asked for.
        temperature: 1 samples the model's law, below 1 sharpens it, 0 takes the most probable token.
        top_k, top_p: keep the k most probable tokens, or the fewest whose probabilities sum to top_p.
        block_size: fill blocks of this many sites from left to right, sharing out the steps; None: the whole canvas at
            once.
        order: reveal the schedule's number of sites in a planned order (`Unmask`): "random", "left-to-right",
            "top-probability", "margin" or "entropy". None: each site on its own (`Ancestral`).
        threshold: reveal all sites whose most probable token has at least this probability, and one at least, in the
            order given ("top-probability" by default); one step per site is allowed, few are needed.
        remask: take back each decoded token with at most this probability in a step, to decide it anew (`ReMDM`).
        regex: the new tokens spell a match of this regular expression (infilling: the whole text does).
        json_schema: likewise a JSON text that fits this schema, itself given as JSON text.
        sampler: any other `Sampler` of the model's process, instead of the temperature, the filters and the strategy.

    Raises:
        UserError: a value outside its range.
    """

    num_steps: int | None = None
    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    block_size: int | None = None
    order: str | None = None
    threshold: float | None = None
    remask: float | None = None
    regex: str | None = None
    json_schema: str | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.num_steps < 1:
            raise UserError(f"sampling: num_steps={self.num_steps}, wanted at least 1 (more steps: better samples)")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"sampling: temperature={self.temperature}, wanted a finite number >= 0 (1 samples the model's law)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"sampling: top_k={self.top_k}, wanted at least 1, or none to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"sampling: top_p={self.top_p}, wanted a number above 0 and at most 1")
        if self.block_size is not None and self.block_size < 1:
            raise UserError(f"sampling: block_size={self.block_size}, wanted at least 1")
        if self.regex is not None and self.json_schema is not None:
            raise UserError("sampling: both a regex and a json_schema were given, wanted one of them")
        self._check_strategy()

    @property
    def planned(self) -> bool:
        """Whether an order or a threshold was named."""
        return self.order is not None or self.threshold is not None

    def _check_strategy(self) -> None:
        if self.order not in (None, *get_args(OrderName)):
            raise UserError(f"sampling: order={self.order!r}, wanted one of {', '.join(get_args(OrderName))}")
        for name in ("threshold", "remask"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"sampling: {name}={value}, wanted a probability above 0 and at most 1")
        if self.planned and self.remask is not None:
            raise UserError("sampling: remask reveals in no order and by no threshold; leave one of them out")
        if self.planned and (self.top_k is not None or self.top_p is not None):
            raise UserError("sampling: top_k and top_p do not go with an order or a threshold; use the temperature")
        settings = (self.temperature, self.top_k, self.top_p, self.order, self.threshold, self.remask)
        if self.sampler is not None and settings != (1.0, None, None, None, None, None):
            raise UserError(
                "sampling: a sampler was given, so temperature, top_k, top_p, order, threshold and remask belong in it"
            )


class Without(Denoiser):
    """The inner law with some tokens given probability zero at every site, and renormalised."""

    def __init__(self, inner: Denoiser, tokens: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.tokens = inner, torch.tensor(tokens)

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Law:
        law = self.inner(xt, t, attention_mask=attention_mask, **cond)
        assert isinstance(law, SiteLaw)
        tokens = self.tokens
        return law.map(lambda log_probs: log_probs.index_fill(-1, tokens.to(log_probs.device), -torch.inf))
