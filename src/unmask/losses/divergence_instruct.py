"""Few-step students of masked diffusion, taught by a discriminator of noised sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.law import SiteLaw, State
from unmask.loss import Loss, require, row_positions, sum_sites
from unmask.losses.policy_gradient import group_advantages
from unmask.processes.masked import Masked
from unmask.rng import Rng

_TIMES, _SITES, _FIRST, _REST, _NOISE, _DATA = 1, 2, 3, 4, 5, 6


class Discriminator(nn.Module):
    """A logit for each noised sequence: the mean over its real tokens of w . h_i; zero before training.

    A net that reads `soft_tokens`, as `Transformer` does, makes it a reward of one-hot vectors, by whose gradient
    `ClassifierGuided` with `first_order` tilts a student:

        lambda soft, t, **cond: -discriminator(soft.argmax(-1), t, soft_tokens=soft, **cond)

    Args:
        net: maps (tokens (b, l), t (b,), attention_mask=..., **cond) to hidden states (b, l, d).
        dim: d.
    """

    def __init__(self, net: nn.Module, *, dim: int) -> None:
        super().__init__()
        self.net, self.logit = net, nn.Linear(dim, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    def forward(
        self, x: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any
    ) -> Float[Tensor, " b"]:
        site = self.logit(self.net(x, t, attention_mask=attention_mask, **cond)).squeeze(-1)
        real = torch.ones_like(x, dtype=torch.bool) if attention_mask is None else attention_mask
        mean: Tensor = (site * real).sum(1) / real.sum(1).clamp(min=1)
        return mean


@dataclass(frozen=True, kw_only=True)
class DivergenceInstruct(Loss):
    """Lowers the divergence of a student's noised samples from those of the teacher (or the data), integrated over t:

        int_0^1 KL( q_student(z_t) || q_target(z_t) ) dt,

    by its score function. The student's sample x takes two steps through a random time in the middle, as its few steps
    will at inference: all masks -> z_i, where each site is revealed with probability alpha(t_i), -> x. Then x is noised
    to z_t, and with a discriminator d(z_t, t) ~ log q_student / q_target

        gradient = E[ d(z_t, t) grad( log p(z_i | masks) + log p(x | z_i) ) ].

    The log ratio's own gradient has mean zero. Rewards -d are compared within groups of rows that share t_i and t:
    (reward - mean) / std, or, unbiased, reward - mean of the others. Alternate with `discriminate`, which trains d.

    The divergence is of the student from the target, the mode-seeking way round: where one step cannot give the
    target's law (from masks alone, its sites are independent) the student pays with entropy. Its value means nothing,
    its gradient does; it is no bound.

    Args:
        process: the masked process.
        discriminator: (z, t, attention_mask=..., **cond) -> logits (b,).
        group_size: rows of a group, >= 2; they come one after another and are never split between batches.
        standardise: divide by the group's standard deviation, the paper's choice.

    Raises:
        TypeError, ValueError: for other noise, or a group of fewer than 2; when called, groups that are not whole.

    References:
        Zheng et al., "Ultra-fast language generation via discrete diffusion divergence instruct", 2025,
        arXiv:2509.25035; Luo et al., "Diff-Instruct", 2023, arXiv:2305.18455 (integral divergence).
    """

    process: Masked
    discriminator: Callable[..., Tensor]
    group_size: int
    standardise: bool = True

    def __post_init__(self) -> None:
        require(self, self.process, Masked, "its student reveals masks")
        if self.group_size < 2:
            raise ValueError(f"DivergenceInstruct: group_size={self.group_size}, wanted at least 2 rows to compare")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        """The surrogate of each row; x0 gives the shape, and what stands at padding."""
        cond |= {} if attention_mask is None else {"attention_mask": attention_mask}
        tokens = self.process._tokens(x0, "DivergenceInstruct")
        x, log_prob = self._roll_out(denoiser, tokens, rng, cond)
        with torch.no_grad():
            reward = -self._logits(x, rng.fold(_NOISE), rng, cond).double()
        return -group_advantages(reward, self.group_size, standardise=self.standardise) * log_prob

    def discriminate(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        """Cross-entropy of telling the student's noised samples from the target's, nats, with gradients for d alone.

        Args:
            denoiser: the student.
            x0: samples of the teacher, or data, (b, l).
        """
        cond |= {} if attention_mask is None else {"attention_mask": attention_mask}
        tokens = self.process._tokens(x0, "DivergenceInstruct")
        with torch.no_grad():
            x, _ = self._roll_out(denoiser, tokens, rng, cond)
        drawn, real = self._logits(x, rng.fold(_NOISE), rng, cond), self._logits(tokens, rng.fold(_DATA), rng, cond)
        return F.softplus(-drawn) + F.softplus(real)

    def _times(self, tokens: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """The middle time and the noise's of each row, the same within a group; (b,) each."""
        groups = rng.row_indices(len(tokens)) // self.group_size
        both = rng.fold(_TIMES).rows(groups).uniform((len(tokens), 2), tokens.device)
        return both[:, 0], both[:, 1]

    def _roll_out(self, denoiser: Denoiser, tokens: Tensor, rng: Rng, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The student's samples (b, l), and the log-probability of how they came about, (b,) with gradients."""
        attention_mask = cond.get("attention_mask")
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
        keyed, (middle, _) = row_positions(attention_mask, rng), self._times(tokens, rng)
        u = keyed.fold(_SITES).uniform(tokens.shape, tokens.device)
        first = real & (u < self.process.schedule.alpha(middle)[:, None])
        canvas = tokens.masked_fill(real, self.process.mask_id)
        canvas, begun = self._reveal(denoiser, canvas, torch.ones_like(middle), first, keyed.fold(_FIRST), cond)
        x, ended = self._reveal(denoiser, canvas, middle, real & ~first, keyed.fold(_REST), cond)
        return x, begun + ended

    def _reveal(
        self, denoiser: Denoiser, canvas: Tensor, t: Tensor, where: Tensor, rng: Rng, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        law: SiteLaw = self.process._sites(denoiser(canvas, t, **cond), "DivergenceInstruct")
        with torch.no_grad():
            values, _ = law.sample_at(where, rng)
        after = canvas.masked_scatter(where, values)
        return after, sum_sites(law.token_log_prob(after, where), where)

    def _logits(self, x: Tensor, noise: Rng, rng: Rng, cond: dict[str, Any]) -> Float[Tensor, " b"]:
        attention_mask, (_, t) = cond.get("attention_mask"), self._times(x, rng)
        zt = self.process.corrupt(x, t, row_positions(attention_mask, noise))
        if attention_mask is not None:
            zt = zt.where(attention_mask, x)
        return self.discriminator(zt, t, **cond)
