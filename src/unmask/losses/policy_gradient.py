"""Reinforcing the whole reverse trajectory by the reward of its outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import State
from unmask.loss import Loss
from unmask.rng import Rng
from unmask.samplers.recorded import Path, Rollout


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Loss):
    """Every step of a trajectory is an action, and all of them share the advantage A of the outcome:

        -sum_n min( r_n A, clip(r_n, 1 - c, 1 + c) A ),   r_n = p(step n) / p_old(step n).

    A step's probability is that of its values and, of an `UnmaskingPolicy`, of the ordered choice of its sites. While
    p_old is the model itself, the gradient is the unbiased -A grad log p(trajectory) of the expected

        reward + entropy_weight H(trajectories) - divergence_weight KL(trajectories || those of the reference),

    up to the scale of the advantages: within each group of rows that answer the same question,

        A = (reward - mean) / std,   or   reward - mean of the other rows   without `standardise`.

    Its value means nothing, its gradient does. A row depends on the others of its group, which come one after another
    and are never split between batches.

    Args:
        group_size: rows of a group, >= 2.
        clip: c > 0.
        standardise: divide by the group's standard deviation, the paper's choice, which weighs all questions alike. A
            group of equal rewards teaches nothing in any case.
        entropy_weight, divergence_weight: in rewards per nat, >= 0.
        reference: where the divergence is measured from: the frozen start.

    Raises:
        ValueError: for numbers outside these ranges, a weight without its reference or the other way round; when
            called, without a rollout and its rewards, or with groups that are not whole.

    References:
        Huang et al., "Reinforcing the diffusion chain of lateral thought with diffusion language models", 2025,
        arXiv:2505.10446; Shao et al., "DeepSeekMath", 2024, arXiv:2402.03300 (advantages of a group); Schulman et al.,
        2017, arXiv:1707.06347 (clipping); Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
    """

    group_size: int
    clip: float = 0.2
    standardise: bool = True
    entropy_weight: float = 0.0
    divergence_weight: float = 0.0
    reference: Denoiser | None = None

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"PolicyGradient: group_size={self.group_size}, wanted at least 2 rows to compare")
        if not self.clip > 0:
            raise ValueError(f"PolicyGradient: clip={self.clip}, wanted a number > 0")
        for name in ("entropy_weight", "divergence_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"PolicyGradient: {name}={value}, wanted a finite number >= 0")
        if (self.reference is None) != (self.divergence_weight == 0):
            raise ValueError("PolicyGradient: a divergence_weight > 0 and a reference belong together; met one of them")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        rollout: Rollout | Path | None = None,
        reward: Float[Tensor, " b"] | None = None,
        old_log_probs: Float[Tensor, "b n"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        """The surrogate of each row.

        Args:
            x0: not looked at; the samples are the rollout's.
            rollout: of this model, or of the one that `old_log_probs` are of.
            reward: of each outcome.
            old_log_probs: `rollout.log_probs` before the first update on it; None: this is the first.
        """
        if rollout is None or reward is None:
            raise ValueError("PolicyGradient: met no rollout or no reward, wanted both: it is paid by its own samples")
        cond |= {} if attention_mask is None else {"attention_mask": attention_mask}
        now = rollout.log_probs(denoiser, **cond)
        value = reward.double() - self.entropy_weight * now.detach().sum(1)
        if self.reference is not None:
            with torch.no_grad():
                start = rollout.log_probs(self.reference, **cond).sum(1)
            value = value - self.divergence_weight * (now.detach().sum(1) - start)
        advantage = group_advantages(value, self.group_size, standardise=self.standardise)[:, None]
        ratio = (now - (now.detach() if old_log_probs is None else old_log_probs)).exp()
        return -torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage).sum(1)


def group_advantages(reward: Float[Tensor, " b"], group_size: int, *, standardise: bool) -> Float[Tensor, " b"]:
    """How much better each row did than its group: (reward - mean) / std, or reward - mean of the others.

    Raises:
        ValueError: groups that are not whole.
    """
    if len(reward) % group_size:
        raise ValueError(f"group_advantages: met {len(reward)} rows, wanted whole groups of {group_size}")
    groups = reward.reshape(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if standardise:
        spread = centred.square().mean(1, keepdim=True).sqrt()
        scale = torch.where(spread > 1e-9 * (1 + groups.abs().amax(1, keepdim=True)), spread, torch.inf)
        return (centred / scale).flatten()
    return (centred * (group_size / (group_size - 1))).flatten()
