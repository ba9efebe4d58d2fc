"""The masked process whose noise level depends on the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.law import Law, LogProbMap, SiteLaw, State, StepLaw
from unmask.ops import expand_time, one_hot, safe_log
from unmask.process import DiscreteProcess
from unmask.rng import Rng
from unmask.schedules.power_vector import TokenSchedule
from unmask.sums import apart

_POSITIONS, _VALUES, _CORRUPT = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class TokenMasked(DiscreteProcess):
    """Token v is replaced by the mask with probability 1 - alpha_v(t); a masked token stays masked.

    q(x_t | x_0 = v) = alpha_v(t) 1[x_t = v] + (1 - alpha_v(t)) 1[x_t = mask].

    A mask now says something about what it hides: p(x_0 | x_t) depends on the time, and a denoiser that does not read
    it can only be approximate.

    Args:
        vocab_size: number of states, the mask included.
        mask_id: which state is the mask; the data never contains it.
        schedule: alpha_v(t) with alpha_v(1) = 0, one entry a state (the mask's is not used).

    Raises:
        ValueError: if the mask is not one of the states, the schedule has another number of them, or it leaves data
            at t = 1.

    References:
        Shi et al., "Simplified and generalized masked diffusion for discrete data", 2024, arXiv:2406.04329, section 6
        (state-dependent schedules); He et al., "DiffusionBERT", 2022, arXiv:2211.15029 (information-dependent ones).
    """

    vocab_size: int
    mask_id: int
    schedule: TokenSchedule

    def __post_init__(self) -> None:
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(
                f"TokenMasked: mask_id={self.mask_id} is not one of the {self.vocab_size} states; vocab_size counts "
                "the mask"
            )
        if self.schedule.vocab_size != self.vocab_size:
            raise ValueError(
                f"TokenMasked: the schedule has {self.schedule.vocab_size} entries, wanted {self.vocab_size}, one a "
                "state with the mask"
            )
        with torch.no_grad():
            left = self.schedule.alpha(torch.ones((), dtype=torch.float64), self._data_tokens(None))
        if float(left.abs().max()) > 1e-12:
            raise ValueError(
                f"TokenMasked: the schedule leaves alpha(1)={float(left.abs().max()):.3g} of token "
                f"{int(self._data_tokens(None)[left.abs().argmax()])}, but sampling starts from all masks; wanted 0"
            )

    def _states(self, device: torch.device | None) -> Int64[Tensor, " v"]:
        return torch.arange(self.vocab_size, device=device)

    def _data_tokens(self, device: torch.device | None) -> Int64[Tensor, " v_data"]:
        states = self._states(device)
        return states[states != self.mask_id]

    def _is_mask(self, device: torch.device | None) -> Bool[Tensor, " v"]:
        return self._states(device) == self.mask_id

    # -- the two vectors ----------------------------------------------------------------------------------------------

    def marginal(self, p0: Float[Tensor, "*s v"], t: Tensor) -> Float[Tensor, "*s v"]:
        t, states = expand_time(t, p0[..., 0])[..., None], self._states(p0.device)
        hidden = (self.schedule.noise(t, states) * p0).sum(-1, keepdim=True)
        return self.schedule.alpha(t, states) * p0 + hidden * self._is_mask(p0.device)

    def likelihood(self, xt: Int64[Tensor, "*s"], s: Tensor, t: Tensor) -> Float[Tensor, "*s v"]:
        s, t = (expand_time(v, xt)[..., None] for v in (s, t))
        states = self._states(xt.device)
        visible = self.schedule.alpha(s, states)
        kept = self.schedule.alpha(t, states) / visible
        lost = (self.schedule.noise(t, states) - self.schedule.noise(s, states)) / visible
        return kept * one_hot(xt, self.vocab_size) + lost * (xt == self.mask_id)[..., None]

    # -- closed forms of what they imply; the process contract compares them with the derived ones --------------------

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return torch.full(tuple(shape), self.mask_id, dtype=torch.int64)

    def prior_kl(self, x0: Int64[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """Zero: x_1 is all masks whatever the data."""
        return torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> Tensor:
        tokens = self._uncoupled(x0, x1)
        noise = self.schedule.noise(expand_time(t, tokens), tokens)
        hit = rng.fold(_CORRUPT).uniform(tokens.shape, tokens.device) < noise
        return torch.where(hit, self.mask_id, tokens)

    def log_corruption(self, xt: Tensor, x0: Tensor, t: Tensor) -> Float[Tensor, "b *s"]:
        """log q(x_t | x_0) at each site, differentiable in the schedule; x_t must be reachable from x_0."""
        log_noise = self.schedule.log_noise(expand_time(t, x0), x0)
        masked = xt == self.mask_id
        kept = (-torch.expm1(log_noise)).where(~masked, 1.0).log()
        return torch.where(masked, log_noise, kept)

    def log_stay(self, t: Tensor, s: Tensor, token: Tensor) -> Tensor:
        """log (1 - alpha_v(s)) / (1 - alpha_v(t)): that a mask over v at t is still there at s < t."""
        return self.schedule.log_noise(s, token) - self.schedule.log_noise(t, token)

    def highest_reveal(self, t: Float[Tensor, "*n"], s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The largest chance, over the data tokens, that a mask at t is lifted by s: one row for each distinct step."""
        pairs = torch.stack([t.flatten(), s.flatten()], 1)
        if bool((pairs == pairs[:1]).all()):  # as in the sampling loops; finding distinct rows sorts them
            pairs, which = pairs[:1], torch.zeros(t.numel(), dtype=torch.int64, device=t.device)
        else:
            pairs, which = pairs.unique(dim=0, return_inverse=True)
        stay = self.log_stay(pairs[:, :1], pairs[:, 1:], self._data_tokens(t.device)).amin(1)
        return (-torch.expm1(stay))[which].reshape(t.shape)

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """A mask becomes v with probability law[v] (alpha_v(s) - alpha_v(t)) / (1 - alpha_v(t)), else it stays."""
        tokens = self._tokens(xt, "reverse")
        t, s = (expand_time(v, tokens).expand(tokens.shape) for v in (t, s))
        return TokenUnmasking(self._sites(law, "reverse"), tokens, tokens == self.mask_id, t, s, self)

    def forward_rates(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        t = expand_time(t, x)
        rate = self.schedule.hazard(t, x) * self.schedule.noise(t, x) / self.schedule.alpha(t, x)
        to_mask = one_hot(torch.full_like(x, self.mask_id), self.vocab_size)
        return rate[..., None] * (to_mask - one_hot(x, self.vocab_size))

    def _reverse_rates(self, p0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        lifted = p0 * self.schedule.hazard(t[..., None], self._states(p0.device))
        return lifted * (xt == self.mask_id)[..., None] * ~self._is_mask(p0.device)

    def nelbo_rate(
        self,
        law: Law,
        x0: Int64[Tensor, "b *s"],
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        where: Bool[Tensor, "b *s"] | None = None,
    ) -> Float[Tensor, "b *s"]:
        """At masked sites, with h_v the hazard of v: sum_v law[v] h_v - h_{x_0} - h_{x_0} log law[x_0]."""
        masked = xt == self.mask_id if where is None else (xt == self.mask_id) & where
        sites, t = self._sites(law, "nelbo_rate"), expand_time(t, xt).expand(xt.shape)
        return self._blockwise(lambda part: self._rate(sites.log_weights(part), x0[part], t[part]), xt, masked)

    def _rate(self, log_weights: Tensor, hidden: Tensor, t: Tensor) -> Float[Tensor, " n"]:
        """`nelbo_rate` at masks; the hazards of all tokens are made once for all sites that share a time."""
        (log_right,), rest = apart(log_weights, hidden)
        times, which = t.unique(return_inverse=True)
        hazards = self.schedule.hazard(times[:, None], self._states(t.device)).to(rest.dtype)
        true = self.schedule.hazard(t, hidden)
        others = (rest @ hazards.T).gather(1, which[:, None]).squeeze(1)
        right = log_right.exp()
        total = right + rest.sum(1)
        return (others + right * true) / total - true - true * (log_right - total.log())


class TokenUnmasking(StepLaw):
    """The law of x_s given x_t of `TokenMasked`.

    Lazy by thinning: a site's uniform u is compared with the highest chance of any token first, the value v is drawn
    only below it, and kept if u is below the chance of v. The head is never asked about the other sites.
    """

    def __init__(
        self,
        law: SiteLaw,
        xt: Int64[Tensor, "b *s"],
        masked: Bool[Tensor, "b *s"],
        t: Float[Tensor, "b *s"],
        s: Float[Tensor, "b *s"],
        process: TokenMasked,
    ) -> None:
        self.law, self.xt, self.masked, self.t, self.s, self.process = law, xt, masked, t, s, process

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        u = rng.fold(_POSITIONS).uniform(self.xt.shape, self.xt.device)
        tried = self.masked & (u < self.process.highest_reveal(self.t, self.s))
        commit = torch.full(self.xt.shape, torch.nan, device=self.xt.device)
        if not bool(tried.any()):
            return self.xt, commit
        values, scores = self.law.sample_at(tried, rng.fold(_VALUES))
        lifted = u[tried] < -torch.expm1(self.process.log_stay(self.t[tried], self.s[tried], values))
        where = tried.masked_scatter(tried, lifted)
        return self.xt.masked_scatter(where, values[lifted]), commit.masked_scatter(
            where, scores[lifted].to(commit.dtype)
        )

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        v, device = self.process.vocab_size, self.xt.device
        everywhere = torch.ones_like(self.masked) if where is None else where
        out = one_hot(self.xt[everywhere], v).log()
        open_sites = self.masked & everywhere
        if bool(open_sites.any()):
            model = self.law.log_probs(open_sites).double()
            t, s = self.t[open_sites][:, None], self.s[open_sites][:, None]
            log_stay = self.process.log_stay(t, s, self.process._states(device))
            lifted = model + (-torch.expm1(log_stay)).log()
            stays = safe_log((model.exp() * log_stay.exp()).sum(1, keepdim=True))
            mixed = torch.where(self.process._is_mask(device), stays, lifted)
            out = out.index_put((self.masked[everywhere],), mixed)
        return out if where is not None else out.reshape(*self.xt.shape, v)

    def only(self, editable: State) -> TokenUnmasking:
        """Masks outside `editable` stay, so that no value is asked for there."""
        assert isinstance(editable, Tensor)
        return TokenUnmasking(self.law, self.xt, self.masked & editable, self.t, self.s, self.process)

    def map(self, fn: LogProbMap) -> TokenUnmasking:
        """`fn` changes the values' law, not the chance that a mask over a given value is lifted."""
        return TokenUnmasking(self.law.map(fn), self.xt, self.masked, self.t, self.s, self.process)
