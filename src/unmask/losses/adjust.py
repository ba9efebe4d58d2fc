"""Teaching a layer to follow the frozen model's one-token-at-a-time conditionals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.blocks import map_sites
from unmask.denoiser import Denoiser
from unmask.denoisers.adjust import round_law
from unmask.law import SiteLaw, State
from unmask.loss import Loss, require, row_positions, sum_sites
from unmask.losses.any_order import random_subsets
from unmask.ops import low_discrepancy_uniforms
from unmask.processes.masked import Masked
from unmask.rng import Rng

_COUNT, _DRAWN, _MASKS, _FIRST = 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class JointDistillation(Loss):
    """What a round of k draws from one pass loses against the frozen model asked before each draw:

        E_{n ~ U{1..l}} E_{|M| = n} E_{D subset of M}  sum_{j=1}^{m-1}
            mean_{i in M - D_j} KL( teacher(x^i | x outside M - D_j) || law(x^i | x outside M).given(x_{D_j}) ),

    m = min(k, n), |D_j| = j: the divergence of the round's law from the sequential one when both go by the same random
    order, if x_0 is drawn from the teacher (data are near it). One j is drawn per row and counts m - 1 times. Zero if
    and only if the layer mimics the teacher; a row with n = 1 costs nothing. It is no bound of -log p(x_0).

    Args:
        process: the masked process.
        teacher: the frozen denoiser.
        tokens_per_call: k >= 2, draws that a pass is to serve.

    Raises:
        TypeError, ValueError: for other noise, or k < 2.

    References:
        Bansal, Sanghavi, "Enabling approximate joint sampling in diffusion LMs", 2025, arXiv:2509.22738 (trained along
        the model's own trajectories; here at every number of masks, on all sites that are left).
    """

    process: Masked
    teacher: Denoiser
    tokens_per_call: int

    def __post_init__(self) -> None:
        require(self, self.process, Masked, "its rounds reveal masks")
        if self.tokens_per_call < 2:
            raise ValueError(
                f"JointDistillation: tokens_per_call={self.tokens_per_call}, wanted at least 2: the first draw of a "
                "round is the frozen model's own"
            )

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        tokens = self.process._tokens(x0, "JointDistillation")
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
        length = real.sum(1).clamp(min=1)
        rows, keyed = rng.row_indices(len(tokens)).to(tokens.device), row_positions(attention_mask, rng)
        u = low_discrepancy_uniforms(rng.fold(_COUNT).scalar(), rows)
        masks = torch.floor(u * length).long().clamp(max=length - 1) + 1
        rounds = masks.clamp(max=self.tokens_per_call) - 1  # adjusted draws of a full round
        v = rng.fold(_DRAWN).uniform((len(tokens),), tokens.device)
        drawn = torch.floor(v * rounds).long().clamp(max=(rounds - 1).clamp(min=0)) + 1
        masked = random_subsets(real, masks, keyed.fold(_MASKS))
        first = random_subsets(masked, drawn, keyed.fold(_FIRST))
        targets = masked & ~first & (rounds > 0)[:, None]
        if not bool(targets.any()):
            return torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        cond |= {} if attention_mask is None else {"attention_mask": attention_mask}
        before = self._canvas(tokens, masked)
        after = self._canvas(tokens, masked & ~first)
        law = round_law(denoiser(before, self._time(masks, length), **cond), "JointDistillation").given(after)
        with torch.no_grad():
            wanted = self.process._sites(self.teacher(after, self._time(masks - drawn, length), **cond), "distillation")
        nats = map_sites(lambda some: _divergence(wanted, law, some), targets, self.process.vocab_size)
        return sum_sites(nats, targets, rounds.double() / (masks - drawn).clamp(min=1))

    def _canvas(self, tokens: Tensor, where: Tensor) -> Tensor:
        return tokens.masked_fill(where, self.process.mask_id)

    def _time(self, masks: Tensor, length: Tensor) -> Tensor:
        return self.process.schedule.inverse(1.0 - masks.double() / length)


def _divergence(wanted: SiteLaw, law: SiteLaw, where: Tensor) -> Float[Tensor, " n"]:
    """KL(wanted || law) at the sites of `where`, nats; impossible values count nothing."""
    with torch.no_grad():
        target = wanted.log_probs(where)
    probs = target.exp()
    gap = torch.where(probs > 0, target - law.log_probs(where), 0.0)
    return (probs * gap).sum(-1)
