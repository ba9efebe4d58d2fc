"""Several tokens from each pass of the network, every one conditioned on those before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unmask.deferred import take_rows
from unmask.denoiser import Denoiser
from unmask.denoisers.adjust import RoundLaw, round_law
from unmask.law import SiteLaw, State
from unmask.loss import require
from unmask.ops import temper
from unmask.processes.masked import Masked
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler
from unmask.samplers.unmask import Candidates, Order
from unmask.select.random import random_order

_VALUES, _DRAW = 3, 5  # the first is that of `Unmask`, whose draws a round of one makes


@dataclass(frozen=True, kw_only=True)
class JointUnmask(Sampler):
    """k tokens a call, drawn one after another from a law that is adjusted to those drawn before.

    A step makes one pass of the network, draws the order's first site from its law, asks the layer for the law given
    that token, draws the order's first site of the rest from this one, and so on:

        x^{i_1} ~ p(. | x_t),   x^{i_j} ~ p(. | x_t).given(x^{i_1}, ..., x^{i_{j-1}}),   j = 2..k.

    As exact as the layer: with the one-token-at-a-time conditionals of the model it draws the model's own sequential
    law; with an untrained layer, independent values. With k = 1 it is `Unmask` by `per_step(1)`, draw for draw. A
    temperature other than 1 is heuristic. Sites are chosen before their values are drawn, by the adjusted law, too.

    A row with n masks is done after ceil(n / k) steps and costs nothing then; what is left at s = 0 is drawn in the
    last step, as one round.

    Args:
        process: the masked process.
        tokens_per_call: k >= 1.
        order: which site is next, a function of `unmask.select`.
        temperature: of the values, >= 0; 0 takes the most probable one.

    Raises:
        TypeError, ValueError: for other noise, or numbers outside these ranges; at a step, for a denoiser whose law
            cannot be asked again.

    References:
        Bansal, Sanghavi, "Enabling approximate joint sampling in diffusion LMs", 2025, arXiv:2509.22738.
    """

    process: Masked
    tokens_per_call: int
    order: Order = random_order
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self, self.process, Masked, "it reveals masks")
        if self.tokens_per_call < 1:
            raise ValueError(f"JointUnmask: tokens_per_call={self.tokens_per_call}, wanted at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"JointUnmask: temperature={self.temperature}, wanted a finite number >= 0")

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    def step(
        self,
        denoiser: Denoiser,
        x: State,
        t: Tensor,
        s: Tensor,
        carry: Carry,
        rng: Rng,
        *,
        editable: State | None = None,
        **cond: Any,
    ) -> tuple[State, Carry]:
        assert editable is None or isinstance(editable, Tensor)
        tokens, attention_mask = self.process._tokens(x, "JointUnmask"), cond.get("attention_mask")
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
        masked = (tokens == self.process.mask_id) & real
        where = masked if editable is None else masked & editable
        commit = torch.full(tokens.shape, torch.nan, device=tokens.device)
        rows = where.any(1)
        if not bool(rows.any()):
            return tokens, Carry(commit_log_prob=commit)
        share = masked.sum(1).double() / real.sum(1).clamp(min=1)
        time = self.process.schedule.inverse(1.0 - share)[rows]
        law = denoiser(tokens[rows], time, **{name: take_rows(value, rows) for name, value in cond.items()})
        found = Candidates(
            process=self.process,
            order=self.order,
            x=tokens[rows],
            where=where[rows],
            t=t[rows],
            s=s[rows],
            rng=rng.take(rows),
            ask_at=partial(_already, round_law(law, "JointUnmask")),
        )
        after, scores = self._round(found)
        everything = rows[:, None].expand_as(tokens)
        return tokens.masked_scatter(everything, after), Carry(
            commit_log_prob=commit.masked_scatter(everything, scores)
        )

    def _round(self, found: Candidates) -> tuple[Tensor, Tensor]:
        """The canvas after the draws, and the log-probability of each new token, NaN elsewhere."""
        first, x, left = found.law, found.x, found.where
        assert isinstance(first, RoundLaw)
        scores = torch.full(x.shape, torch.nan, device=x.device)
        counts = torch.where(found.s == 0, found.sizes, found.sizes.clamp(max=self.tokens_per_call))
        law: SiteLaw = first
        for number in range(int(counts.max())):
            rng = found.rng if number == 0 else found.rng.fold(_DRAW, number)
            law = first if number == 0 else first.given(x)
            open_sites = left & (counts > number)[:, None]
            asked = replace(found, x=x, where=open_sites, rng=rng, ask_at=partial(_already, law), _known={})
            site = torch.zeros_like(left).scatter(1, asked.ranking[:, :1], True) & open_sites
            values, log_probs = self._tempered(law).sample_at(site, rng.fold(_VALUES))
            x, left = x.masked_scatter(site, values), left & ~site
            scores = scores.masked_scatter(site, log_probs.to(scores.dtype))
        return x, scores

    def _tempered(self, law: SiteLaw) -> SiteLaw:
        return law if self.temperature == 1 else law.map(partial(temper, temperature=self.temperature))


def _already(law: SiteLaw, sites: Tensor) -> SiteLaw:
    """The law that is there, whichever sites are asked about."""
    return law
