"""The curriculum of the diffusion duality: uniform noise seen through the Gaussian noise that makes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import State
from unmask.loss import Loss, require, row_positions
from unmask.ops import expand_time, low_discrepancy_uniforms, one_hot
from unmask.processes.uniform import Uniform
from unmask.rng import Rng
from unmask.schedules.argmax_gaussian import ArgmaxTransform

_TIME, _NOISE = 1, 2


@dataclass(frozen=True, kw_only=True)
class DuoCurriculum(Loss):
    """The bound of uniform noise, with the network shown the Gaussian latents w_t behind x_t = argmax w_t:

        w_t = signal onehot(x_0) + sigma eps,   input = softmax(w_t / temperature),
        loss = E_t sum_i nelbo_rate( law(. | input), x_0, argmax w_t ),

    where signal and sigma make argmax w_t uniform noise at level alpha_t (`ArgmaxTransform`). The softer the input, the
    more it tells of x_0, and the less the gradient varies; as the temperature falls to 0 the input becomes one-hot and
    the loss `NELBO`, which is the bound to report. With soft inputs it is none.

    The rate is summed over all jumps for every draw of x_t (the Rao-Blackwellised bound). Latents are dense: (b, l, v)
    normals a batch. The network has to take `soft_tokens`, as `Transformer` does.

    Args:
        process: uniform noise.
        temperature: > 0.
        window: times are uniform in this part of [0, 1], and the loss is the mean rate over it. With few steps in a
            curriculum they are best spent on the times that teach most: the paper draws them from (0.03, 0.15).

    Raises:
        TypeError, ValueError: for other noise, a temperature that is not positive, or a window outside [0, 1].

    References:
        Sahoo et al., "The diffusion duality", 2025, arXiv:2506.10892.
    """

    process: Uniform
    temperature: float = 0.001
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        require(self, self.process, Uniform, "the argmax of Gaussian noise is uniform noise")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"DuoCurriculum: temperature={self.temperature}, wanted a positive one; at 0 it is NELBO(process=...)"
            )
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise ValueError(f"DuoCurriculum: window={self.window}, wanted 0 <= first < last <= 1")

    def at(self, progress: float) -> DuoCurriculum:
        """The loss when the share `progress` in [0, 1) of the curriculum is done: the temperature falls linearly."""
        return replace(self, temperature=self.temperature * (1 - progress))

    @cached_property
    def _transform(self) -> ArgmaxTransform:
        return ArgmaxTransform(vocab_size=self.process.vocab_size)

    def latents(self, x0: Tensor, t: Float[Tensor, " b"], rng: Rng) -> Float[Tensor, "b *s v"]:
        """w_t given x_0, float32."""
        times, row = t.unique(return_inverse=True)
        ratio = self._transform.ratio(self.process.schedule.alpha(times), self.process.schedule.noise(times))[row]
        sigma = expand_time(1 / (1 + ratio**2).sqrt(), x0)[..., None]
        signal = expand_time(ratio, x0)[..., None] * sigma
        noise = rng.normal((*x0.shape, self.process.vocab_size), x0.device)
        return noise.mul_(sigma).scatter_add_(-1, x0[..., None], signal.expand(*x0.shape, 1)).float()

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        tokens = self.process._tokens(x0, "DuoCurriculum")
        spread = low_discrepancy_uniforms(rng.fold(_TIME).scalar(), rng.row_indices(len(tokens)).to(tokens.device))
        t = self.window[0] + (self.window[1] - self.window[0]) * spread
        latents = self.latents(tokens, t, row_positions(attention_mask, rng.fold(_NOISE)))
        xt = latents.argmax(-1)
        soft = torch.softmax(latents / self.temperature, -1)
        if attention_mask is not None:
            xt = xt.where(attention_mask, tokens)
            soft = soft.where(attention_mask[..., None], one_hot(tokens, self.process.vocab_size, soft.dtype))
        law = denoiser(xt, t, attention_mask=attention_mask, soft_tokens=soft, **cond)
        return self.process.nelbo_rate(law, tokens, xt, t, attention_mask).flatten(1).sum(1)
