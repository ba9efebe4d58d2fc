"""The binary classification loss of the Glauber generative model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.denoisers.glauber import GlauberDenoiser
from unmask.law import State
from unmask.loss import Loss, require, row_positions
from unmask.ops import low_discrepancy_uniforms
from unmask.processes.glauber import Glauber
from unmask.rng import Rng

_STEP, _NOISE, _SYMBOL, _TOKEN = 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class GlauberClassification(Loss):
    """Is the token that visit k left at its site signal or noise? The cross-entropy at one random visit per example.

        E_k E [ log(1 + e^-f) if z_k = keep, else log(1 + e^f) ],   f = the log-odds the network gives to that token.

    Its minimiser is the exact Bayes classifier at every visit, hence the exact heat-bath conditionals. It is no bound
    of a likelihood, and its unit is nats per classification, not per sequence.

    Args:
        process: the noise.

    References:
        Varma, Nagaraj, Shanmugam, "Glauber generative model: discrete diffusion models via binary classification",
        2024, arXiv:2405.17035.
    """

    process: Glauber

    def __post_init__(self) -> None:
        require(self, self.process, Glauber, "it tells that process's noise from signal")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        if not isinstance(denoiser, GlauberDenoiser):
            raise TypeError(f"GlauberClassification: met a {type(denoiser).__name__}, wanted a GlauberDenoiser")
        process, tokens = self.process, self.process.tokens(x0, "GlauberClassification")
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
        rows = rng.row_indices(len(tokens)).to(tokens.device)
        before = process.random_step(low_discrepancy_uniforms(rng.fold(_STEP).scalar(), rows), real)
        xk = process.corrupt_steps(tokens, before, row_positions(attention_mask, rng.fold(_NOISE)), real)
        after = before + 1
        visited = process.visited(after, real)
        is_signal = rng.fold(_SYMBOL).uniform((len(tokens),), tokens.device) < process.keep
        noise = (rng.fold(_TOKEN).uniform((len(tokens),), tokens.device) * process.vocab_size).long()
        xk = xk.where(~visited | is_signal[:, None], noise[:, None])
        if attention_mask is not None:
            cond["attention_mask"] = attention_mask
        logits = denoiser.signal_logits(xk, process.time_of(after, real), **cond).double()
        chosen = logits.gather(1, xk[visited][:, None]).squeeze(1)
        sign = torch.where(is_signal[visited.any(1)], -1.0, 1.0)
        nats = torch.nn.functional.softplus(sign * chosen)
        out = torch.zeros(len(tokens), dtype=nats.dtype, device=tokens.device)
        return out.masked_scatter(visited.any(1), nats)
