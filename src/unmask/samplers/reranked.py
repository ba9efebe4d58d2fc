"""Several candidates a step, and a reward that chooses among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import State
from unmask.loss import require
from unmask.ops import draw_categorical
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler
from unmask.samplers.ancestral import Ancestral

_CANDIDATE, _CHOICE = 21, 22

Reward = Callable[..., Tensor]
"""(x_s (b, l), s (b,), **cond) -> log-weights (b,), each of its row alone."""


@dataclass(frozen=True, kw_only=True)
class Reranked(Sampler):
    """Draw M candidates of x_s from the ancestral kernel, and keep one with probability

        softmax_m( scale * reward(x_s^m, s) ),

    which tends to the tilted kernel p(x_s | x_t) exp(scale * reward(x_s, s)) / Z as M grows; with scale = inf the best
    one. Heuristic: the tilt is made step by step, and M is finite. With M = 1 it is the base, draw for draw. For one
    step and reward = log q_target / q_student at s = 0, such as minus the logit of the discriminator that
    `DivergenceInstruct` trained, it tends to the target's law.

    The paper's sampler tilts the student's logits by the gradient of the reward in early steps and re-ranks in late
    ones. The tilt is `ClassifierGuided(denoiser, reward, first_order=True, guidance_scale=...)` with h(t) as its scale,
    zero in late steps, and a reward of one-hot vectors (see `Discriminator`); its gradient is taken at the masks, where
    the authors' code takes it at the student's prediction. Late steps alone are re-ranked by a reward that is zero for
    early s. Where both act in one step the tilt is made twice, and may overshoot.

    A step costs one call of the denoiser, as the base's does, and M of the reward; rows in which nothing is left to
    draw are scored with the others, and a step in which no row has anything is free.

    Args:
        base: the sampler whose kernel is drawn from.
        reward: log-weights of states and their times, finite; gets the conditions of the denoiser.
        num_candidates: M >= 1.
        scale: >= 0.

    Raises:
        TypeError, ValueError: for another sampler, or numbers outside these ranges.

    References:
        Zheng et al., "Ultra-fast language generation via discrete diffusion divergence instruct", 2025,
        arXiv:2509.25035 (its reward-guided ancestral sampler).
    """

    base: Ancestral
    reward: Reward
    num_candidates: int = 4
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self, self.base, Ancestral, "candidates are drawn from its kernel")
        if self.num_candidates < 1:
            raise ValueError(f"Reranked: num_candidates={self.num_candidates}, wanted at least 1")
        if not self.scale >= 0:
            raise ValueError(f"Reranked: scale={self.scale}, wanted a number >= 0")

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.base.prior(shape, rng)

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
        if isinstance(x, dict):
            raise TypeError(f"Reranked: met columns {sorted(x)}, wanted one tensor of tokens (b, l)")
        law = self.base.transition(denoiser, x, t, s, **cond)
        law = law if editable is None else law.only(editable)
        streams = [rng, *(rng.fold(_CANDIDATE, m) for m in range(1, self.num_candidates))]
        canvases, commits = zip(*(law.draw(stream) for stream in streams), strict=True)
        if self.num_candidates == 1 or all(torch.equal(canvas, x) for canvas in canvases):
            return canvases[0], Carry(commit_log_prob=commits[0])
        weights = torch.stack([self.reward(canvas, s, **cond) for canvas in canvases], 1).double()
        pick = self._choose(weights, rng.fold(_CHOICE))
        row = torch.arange(len(pick), device=pick.device)
        after, commit = (torch.stack(parts, 1)[row, pick] for parts in (canvases, commits))
        return after, Carry(commit_log_prob=commit)

    def _choose(self, weights: Float[Tensor, "b m"], rng: Rng) -> Tensor:
        if not bool(weights.isfinite().all()):
            raise ValueError("Reranked: the reward is not finite everywhere; wanted finite log-weights")
        if math.isinf(self.scale):
            return weights.argmax(1)
        return draw_categorical(self.scale * weights, rng.uniform((len(weights),), weights.device))
