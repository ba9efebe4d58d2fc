"""The masked (absorbing) process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.law import Law, LogProbMap, SiteLaw, State, StepLaw
from unmask.ops import expand_time, one_hot
from unmask.process import Interpolating
from unmask.rng import Rng
from unmask.schedule import Schedule
from unmask.schedules.linear import Linear

_POSITIONS, _VALUES, _CORRUPT = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Masked(Interpolating):
    """Each token is replaced by the mask, independently, with probability 1 - alpha(t); a masked token stays masked.

    q(x_t | x_0) = alpha_t 1[x_t = x_0] + (1 - alpha_t) 1[x_t = mask].

    Args:
        vocab_size: number of states, the mask included.
        mask_id: which state is the mask; the data never contains it.
        schedule: alpha(t) with alpha(1) = 0, so that the prior (all masks) is exact.

    Raises:
        ValueError: if the mask is not one of the states, or the schedule leaves data at t = 1.

    References:
        Austin et al., 2021, arXiv:2107.03006 (absorbing state); Shi et al., "Simplified and generalized masked
        diffusion for discrete data", 2024, arXiv:2406.04329; Sahoo et al., "Simple and effective masked diffusion
        language models", 2024, arXiv:2406.07524.
    """

    vocab_size: int
    mask_id: int
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(
                f"Masked: mask_id={self.mask_id} is not one of the {self.vocab_size} states; vocab_size counts the mask"
            )
        left = float(self.schedule.alpha(torch.tensor(1.0, dtype=torch.float64)))
        if abs(left) > 1e-12:
            raise ValueError(
                f"Masked: {self.schedule} leaves alpha(1)={left:.3g} of the data, but sampling starts from all masks; "
                "wanted a schedule with alpha(1)=0"
            )

    def mixing(self, t: Tensor) -> Float[Tensor, "*s v"]:
        return one_hot(torch.tensor(self.mask_id, device=t.device), self.vocab_size)

    # -- closed forms of what the two vectors imply; the process contract compares them with the derived ones

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return torch.full(tuple(shape), self.mask_id, dtype=torch.int64)

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> Tensor:
        tokens = self._uncoupled(x0, x1)
        noise = self.schedule.noise(expand_time(t, tokens))
        hit = rng.fold(_CORRUPT).uniform(tokens.shape, tokens.device) < noise
        return torch.where(hit, self.mask_id, tokens)

    def hazard(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): the rate at which a masked token is revealed in reverse, per unit time."""
        return -self.schedule.alpha_dot(t) / self.schedule.noise(t)

    def reveal_probability(self, t: Tensor, s: Tensor) -> Tensor:
        """(alpha_s - alpha_t) / (1 - alpha_t): the chance that a token masked at t is revealed by s < t."""
        noise = self.schedule.noise(t)
        return (noise - self.schedule.noise(s)) / noise

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """Each mask is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t), its value drawn from `law`.

        The positions are drawn before the values, so `law` is asked about the revealed positions only, and not at all
        when there are none.
        """
        tokens = self._tokens(xt, "reverse")
        reveal = self.reveal_probability(expand_time(t, tokens), expand_time(s, tokens))
        return Unmasking(self._sites(law, "reverse"), tokens, tokens == self.mask_id, reveal, self)

    def forward_rates(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        rate = -self.schedule.alpha_dot(t) / self.schedule.alpha(t)
        to_mask = one_hot(torch.full_like(x, self.mask_id), self.vocab_size)
        return expand_time(rate, x)[..., None] * (to_mask - one_hot(x, self.vocab_size))

    def nelbo_rate(
        self,
        law: Law,
        x0: Int64[Tensor, "b *s"],
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        where: Bool[Tensor, "b *s"] | None = None,
    ) -> Float[Tensor, "b *s"]:
        """hazard(t) times the cross-entropy of x_0, at masked sites only."""
        masked = xt == self.mask_id if where is None else (xt == self.mask_id) & where
        nll = -self._sites(law, "nelbo_rate").token_log_prob(x0, masked).double()
        rate = expand_time(self.hazard(t), xt).expand(xt.shape)[masked] * nll
        return torch.zeros(xt.shape, dtype=rate.dtype, device=xt.device).masked_scatter(masked, rate)


class Unmasking(StepLaw):
    """The law of x_s given x_t of the masked process: a mask stays, or is replaced by a draw from the model's law."""

    def __init__(
        self,
        law: SiteLaw,
        xt: Int64[Tensor, "b *s"],
        masked: Bool[Tensor, "b *s"],
        reveal: Tensor,
        process: Masked,
    ) -> None:
        self.law, self.xt, self.masked, self.reveal, self.process = law, xt, masked, reveal, process

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        u = rng.fold(_POSITIONS).uniform(self.xt.shape, self.xt.device)
        where = self.masked & (u < self.reveal)
        commit = torch.full(self.xt.shape, torch.nan, device=self.xt.device)
        if not bool(where.any()):
            return self.xt, commit
        tokens, log_probs = self.law.sample_at(where, rng.fold(_VALUES))
        return self.xt.masked_scatter(where, tokens), commit.masked_scatter(where, log_probs.to(commit.dtype))

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        v = self.process.vocab_size
        everywhere = torch.ones_like(self.masked) if where is None else where
        out = one_hot(self.xt[everywhere], v).log()
        open_sites = self.masked & everywhere
        if bool(open_sites.any()):
            reveal = self.reveal.expand(self.xt.shape)[open_sites][:, None]
            revealed = self.law.log_probs(open_sites).double() + reveal.log()
            is_mask = torch.arange(v, device=out.device) == self.process.mask_id
            mixed = torch.where(is_mask, torch.log1p(-reveal), revealed)  # the model never draws the mask itself
            out = out.index_put((self.masked[everywhere],), mixed)
        return out if where is not None else out.reshape(*self.xt.shape, v)

    def only(self, editable: State) -> Unmasking:
        """Masks outside `editable` stay, so that no value is asked for there."""
        assert isinstance(editable, Tensor)
        return Unmasking(self.law, self.xt, self.masked & editable, self.reveal, self.process)

    def map(self, fn: LogProbMap) -> Unmasking:
        """`fn` changes the values' law, not the chance of being revealed."""
        return Unmasking(self.law.map(fn), self.xt, self.masked, self.reveal, self.process)
