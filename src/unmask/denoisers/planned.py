"""A planner and a denoiser of noisy sites out of one ordinary denoiser."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.blocks import mask_of
from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.law import Categorical, SiteLaw, State
from unmask.ops import expand_time, safe_log
from unmask.process import Interpolating


class Planner(Denoiser):
    """The law of z_i, whether site i of x_t was drawn from the noise (1) or is still data (0), from a law of x_0.

        p(z_i = 1 | x_t) = 1 - (1 - k) p(x_0^i = x_t^i | x_t),   k = n / (alpha + n),   n = (1 - alpha) pi[x_t^i],

    where k is the chance that a token which equals its clean value came from the noise all the same.

    Args:
        denoiser: the law of x_0 given x_t.
        process: noise that mixes the data with a law pi.

    References:
        Liu, Nam, Campbell, Staerk, Xu, Jaakkola, Gomez-Bombarelli, "Think while you generate: discrete diffusion with
        planned denoising", 2024, arXiv:2410.06264.
    """

    def __init__(self, denoiser: Denoiser, process: Interpolating) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, process

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        tokens, law, times = _asked(self.denoiser, self.process, xt, t, attention_mask, cond)

        def log_weights(index: Tensor) -> Tensor:
            where = mask_of(index, tokens.shape)
            by_chance = _by_chance(self.process, tokens[where], times[where])
            log_own = law.token_log_prob(tokens, where).double()
            noise = -torch.expm1(log_own) + by_chance * log_own.exp()
            return safe_log(torch.stack([(1 - by_chance) * log_own.exp(), noise], -1))

        return Categorical(tokens.shape, 2, log_weights, device=tokens.device)


class GivenNoise(Denoiser):
    """The law of x_0^i given x_t and that site i was drawn from the noise: p(x_0^i | x_t) with x_t^i weighted by k.

    Of a site that cannot have been (an unmasked one), p(x_0^i | x_t) itself.

    Args:
        denoiser, process: as for `Planner`.

    References:
        Liu et al., 2024, arXiv:2410.06264.
    """

    def __init__(self, denoiser: Denoiser, process: Interpolating) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, process

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        tokens, law, times = _asked(self.denoiser, self.process, xt, t, attention_mask, cond)

        def log_weights(index: Tensor) -> Tensor:
            where = mask_of(index, tokens.shape)
            log_probs, x = law.log_probs(where).double(), tokens[where][:, None]
            own = log_probs.gather(1, x) + safe_log(_by_chance(self.process, x.squeeze(1), times[where]))[:, None]
            given = log_probs.scatter(1, x, own)
            return given.where(given.amax(1, keepdim=True) > -torch.inf, log_probs)

        return Categorical(tokens.shape, self.process.vocab_size, log_weights, device=tokens.device)


def _asked(
    denoiser: Denoiser,
    process: Interpolating,
    xt: State,
    t: Tensor,
    attention_mask: Bool[Tensor, "b l"] | None,
    cond: dict[str, Any],
) -> tuple[Tensor, SiteLaw, Float[Tensor, "b *s"]]:
    tokens = process._tokens(xt, "planned denoising")
    if attention_mask is not None:
        cond = {**cond, "attention_mask": attention_mask}
    return tokens, ask(denoiser, tokens, t, **cond), expand_time(t, tokens).expand(tokens.shape)


def _by_chance(process: Interpolating, x: Tensor, t: Tensor) -> Float[Tensor, " n"]:
    """p(z = 1 | x_0 = x_t = x)."""
    noise = process._noise_at(x, t)
    chance: Tensor = noise / (process.schedule.alpha(t) + noise)
    return chance.nan_to_num(nan=0.0)  # at t = 1, of a value that neither data nor noise can have left
