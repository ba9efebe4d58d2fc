"""The plug-in posterior as a true law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import Categorical, State
from unmask.ops import expand_time, safe_log
from unmask.process import DiscreteProcess, Interpolating
from unmask.sums import writable

_CERTAIN = 700.0  # where x_t is surely x_0 the gain is infinite: e^700 leaves the others nothing in float64


class PlugIn(Denoiser):
    """The law of x_0 under which the exact reverse step is the published plug-in posterior q(x_s | x_t, x_0 = x_theta):

        p(x | x_t) proportional to x_theta[x] q(x_t | x_0 = x),

    so that sum_x p(x | x_t) q(x_s | x_t, x) is q(x_t | x_s) sum_x x_theta[x] q(x_s | x), normalised: just what comes of
    putting the network's x_theta in place of x_0. How much x_t itself tells of x_0 is known and need not be learned:
    for interpolating noise the logits gain log(1 + alpha / ((1 - alpha) pi_t[x_t])) at x_t and nothing elsewhere.

    Args:
        inner: the denoiser whose law is x_theta, a `CategoricalDenoiser` for instance.
        process: any noise; other than interpolating, it is asked for a vector of the vocabulary's size at each site
            whose law is asked for.

    References:
        Austin et al., 2021, arXiv:2107.03006; Schiff et al., "Simple guidance mechanisms for discrete diffusion
        models", 2024, arXiv:2412.10193; Sahoo et al., "The diffusion duality", 2025, arXiv:2506.10892.
    """

    def __init__(self, inner: Denoiser, process: DiscreteProcess) -> None:
        super().__init__()
        self.inner, self.process = inner, process

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        law = self.inner(xt, t, attention_mask=attention_mask, **cond)
        if isinstance(xt, dict) or not isinstance(law, Categorical):
            raise TypeError(f"PlugIn: its inner denoiser returned a {type(law).__name__}, wanted a Categorical")
        known: Categorical = law  # the type, for the closure
        flat, times = xt.flatten(), expand_time(t, xt).expand(xt.shape).flatten()

        def log_weights(index: Tensor) -> Tensor:
            rows, x, at = known.weights(index), flat[index], times[index]
            if isinstance(self.process, Interpolating):
                noise = self.process._noise_at(x, at)
                gain = torch.log(noise + self.process.schedule.alpha(at)) - torch.log(noise)
                return writable(rows).scatter_add_(1, x[:, None], gain.clamp(max=_CERTAIN)[:, None].to(rows.dtype))
            return rows + safe_log(self.process.likelihood(x, torch.zeros_like(at), at)).to(rows.dtype)

        return Categorical(law.shape, law.vocab_size, log_weights, device=law.device)
