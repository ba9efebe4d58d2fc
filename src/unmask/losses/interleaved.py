"""The objective of interleaved Gibbs diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.columns import key_columns
from unmask.denoiser import Denoiser
from unmask.denoisers.interleaved import InterleavedDenoiser
from unmask.law import State
from unmask.loss import Loss, require, sum_sites
from unmask.ops import low_discrepancy_uniforms
from unmask.processes.interleaved import TOKENS, VALUES, Interleaved
from unmask.rng import Rng

_STEP, _NOISE, _SYMBOL, _TOKEN, _INSIDE, _VALUE, _GIVEN, _SHARE = 1, 2, 3, 4, 5, 6, 7, 8


@dataclass(frozen=True, kw_only=True)
class InterleavedLoss(Loss):
    """One random visit of each row: is the token it left signal or noise, or which number was there before?

        tokens:   log(1 + exp(-/+ f)) for signal / noise, f = logit + log(keep v / (1 - keep)) of the token left;
        numbers:  (y_0 - mean)^2 / 2, from y_u with u ~ U(0, 1).

    Each has its minimum at the exact conditional (its mean, for numbers). No bound of a likelihood.

    Args:
        process: the noise.
        given_share: with s ~ U(0, given_share) for each row, every element is given with probability s: it stays clean,
            is not visited, and the network is told. 0: nothing is ever given.

    Raises:
        ValueError: for a share outside [0, 1].

    References:
        Anil et al., "Interleaved Gibbs diffusion for constrained generation", 2025, arXiv:2502.13450.
    """

    process: Interleaved
    given_share: float = 0.0

    def __post_init__(self) -> None:
        require(self, self.process, Interleaved, "it looks at single visits")
        if not 0 <= self.given_share <= 1:
            raise ValueError(f"InterleavedLoss: given_share={self.given_share}, wanted a share in [0, 1]")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b n"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        if not isinstance(denoiser, InterleavedDenoiser):
            raise TypeError(f"InterleavedLoss: met a {type(denoiser).__name__}, wanted an InterleavedDenoiser")
        process, turns, x = self.process, self.process.tokens, self.process.columns(x0, "InterleavedLoss")
        real = process.real(x, attention_mask, "InterleavedLoss")
        keyed = rng if attention_mask is None else key_columns(rng, process.split(real, x))
        rows = rng.row_indices(len(real)).to(real.device)
        before = turns.random_step(low_discrepancy_uniforms(rng.fold(_STEP).scalar(), rows), real)
        visited, given = turns.visited(before + 1, real), self._given(x, rng, keyed) & real
        noisy = process.corrupt_steps(x, before, keyed.fold(_NOISE), real, given)
        seen, u, is_signal = self._visit(noisy, process.split(visited, x), rng, keyed)
        if attention_mask is not None:
            cond["attention_mask"] = attention_mask
        _, _, logits, means = denoiser.outputs(seen, turns.time_of(before + 1, real), u=u, given=given, **cond)
        scored = process.split(visited & ~given, x)
        tokens, numbers = scored[TOKENS], scored[VALUES]  # at most one element a row
        odds = logits[tokens].gather(1, seen[TOKENS][tokens][:, None]).squeeze(1).double() + turns.log_signal_odds
        nats = torch.nn.functional.softplus(torch.where(is_signal[tokens.any(1)], -odds, odds))
        error = (noisy[VALUES][numbers].double() - means[numbers].double()).square() / 2
        return sum_sites(nats, tokens) + sum_sites(error, numbers)

    def _given(self, x: dict[str, Tensor], rng: Rng, keyed: Rng) -> Bool[Tensor, "b n"]:
        share = self.given_share * rng.fold(_SHARE).uniform((len(x[TOKENS]),), x[TOKENS].device)
        draws = keyed.fold(_GIVEN)
        uniforms = [draws.column(name).uniform(x[name].shape, x[name].device) for name in (TOKENS, VALUES)]
        return torch.cat(uniforms, 1) < share[:, None]

    def _visit(
        self, x: dict[str, Tensor], visited: dict[str, Tensor], rng: Rng, keyed: Rng
    ) -> tuple[dict[str, Tensor], Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """(x with the visit made, or part u of it to a number, u, whether a token would be signal)."""
        tokens, values, noise = x[TOKENS], x[VALUES], self.process.tokens
        rows = (len(tokens),)
        is_signal = rng.fold(_SYMBOL).uniform(rows, tokens.device) < noise.keep
        other = (rng.fold(_TOKEN).uniform(rows, tokens.device) * noise.vocab_size).long()
        u = 1 - rng.fold(_INSIDE).uniform(rows, tokens.device)  # in (0, 1]
        moved = self.process.decay(values, u[:, None], keyed.fold(_VALUE).column(VALUES))
        seen = {
            TOKENS: tokens.where(~visited[TOKENS] | is_signal[:, None], other[:, None]),
            VALUES: values.where(~visited[VALUES], moved),
        }
        return seen, u, is_signal
