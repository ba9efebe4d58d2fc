"""The masked process with several interchangeable masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.law import Law, LogProbMap, SiteLaw, State, StepLaw
from unmask.ops import expand_time, one_hot
from unmask.process import DiscreteProcess
from unmask.rng import Rng
from unmask.schedule import Schedule
from unmask.schedules.linear import Linear

_POSITIONS, _VALUES, _CORRUPT, _WHICH, _REHASH = 1, 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True)
class MultiMask(DiscreteProcess):
    """Each token is replaced, independently with probability 1 - alpha(t), by one of m masks drawn at random:

        q(x_t | x_0) = alpha_t 1[x_t = x_0] + (1 - alpha_t) / m  1[x_t is a mask].

    A mask once drawn stays as it is (m absorbing states). Which one it is says nothing about x_0: the exact law of x_0
    given x_t depends on the pattern of the masks alone, so that bound and reverse step are those of one mask. The ids
    are random numbers that a network can read, and a trained one does not ignore them altogether.

    Args:
        vocab_size: number of states, all masks included.
        mask_id: the first mask; the masks are mask_id, ..., mask_id + num_masks - 1, and the data contains none.
        num_masks: m >= 1; 1 is `Masked`.
        schedule: alpha(t) with alpha(1) = 0, so that the prior (masks with random ids) is exact.

    Raises:
        ValueError: if the masks are not among the states, or the schedule leaves data at t = 1.

    References:
        Ma, Zhang, Yang, Feng, Ye, "ReDDiT: rehashing noise for discrete visual generation", 2025, arXiv:2505.19656.
    """

    vocab_size: int
    mask_id: int
    num_masks: int = 1
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.num_masks < 1 or not 0 <= self.mask_id <= self.vocab_size - self.num_masks:
            raise ValueError(
                f"MultiMask: {self.num_masks} masks from mask_id={self.mask_id} on, wanted one or more among the "
                f"{self.vocab_size} states; vocab_size counts all masks"
            )
        left = float(self.schedule.alpha(torch.tensor(1.0, dtype=torch.float64)))
        if abs(left) > 1e-12:
            raise ValueError(
                f"MultiMask: {self.schedule} leaves alpha(1)={left:.3g} of the data, but sampling starts from all "
                "masks; wanted a schedule with alpha(1)=0"
            )

    def is_mask(self, x: Int64[Tensor, "*s"]) -> Bool[Tensor, "*s"]:
        """Where x holds any of the masks."""
        return (x >= self.mask_id) & (x < self.mask_id + self.num_masks)

    def draw_masks(self, u: Float[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
        """Masks with ids drawn uniformly, one uniform a site."""
        return self.mask_id + (u * self.num_masks).long()

    def _masks(self, device: torch.device) -> Bool[Tensor, " v"]:
        return self.is_mask(torch.arange(self.vocab_size, device=device))

    # -- the two vectors ----------------------------------------------------------------------------------------------

    def marginal(self, p0: Float[Tensor, "*s v"], t: Tensor) -> Float[Tensor, "*s v"]:
        t, masks = expand_time(t, p0[..., 0])[..., None], self._masks(p0.device)
        alpha, noise = self.schedule.alpha(t), self.schedule.noise(t)
        hidden = noise * p0.masked_fill(masks, 0.0).sum(-1, keepdim=True) / self.num_masks
        return torch.where(masks, p0 + hidden, alpha * p0)

    def likelihood(self, xt: Int64[Tensor, "*s"], s: Tensor, t: Tensor) -> Float[Tensor, "*s v"]:
        s, t = expand_time(s, xt)[..., None], expand_time(t, xt)[..., None]
        kept = self.schedule.alpha(t) / self.schedule.alpha(s)
        lost = (self.schedule.noise(t) - self.schedule.noise(s)) / self.schedule.alpha(s) / self.num_masks
        same, masks = one_hot(xt, self.vocab_size), self._masks(xt.device)
        return torch.where(masks, same, kept * same + lost * self.is_mask(xt)[..., None])

    # -- closed forms of what they imply; the process contract compares them with the derived ones --------------------

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return self.draw_masks(rng.fold(_WHICH).uniform(shape))

    def prior_kl(self, x0: Int64[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """Zero: x_1 is all masks whatever the data."""
        return torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> Tensor:
        tokens = self._uncoupled(x0, x1)
        hit = rng.fold(_CORRUPT).uniform(tokens.shape, tokens.device) < self.schedule.noise(expand_time(t, tokens))
        return torch.where(hit, self.draw_masks(rng.fold(_WHICH).uniform(tokens.shape, tokens.device)), tokens)

    def hazard(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): the rate at which a mask is lifted in reverse, per unit time."""
        return -self.schedule.alpha_dot(t) / self.schedule.noise(t)

    def lift_probability(self, t: Tensor, s: Tensor) -> Tensor:
        """(alpha_s - alpha_t) / (1 - alpha_t): the chance that a mask at t is lifted by s < t."""
        noise = self.schedule.noise(t)
        return (noise - self.schedule.noise(s)) / noise

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """Each mask is lifted with probability (alpha_s - alpha_t) / (1 - alpha_t), else it stays with its id.

        The positions are drawn before the values: `law` is asked where a mask is lifted, and nowhere else.
        """
        return self.lifting(law, xt, t, s, rehash=False)

    def lifting(self, law: Law, xt: State, t: Tensor, s: Tensor, *, rehash: bool) -> Lifting:
        """`reverse`; with `rehash` the masks that stay get new ids, which changes no law of x_s averaged over x_t."""
        tokens = self._tokens(xt, "reverse")
        lift = self.lift_probability(expand_time(t, tokens), expand_time(s, tokens))
        return Lifting(self._sites(law, "reverse"), tokens, self.is_mask(tokens), lift, self, rehash)

    def forward_rates(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        rate = -self.schedule.alpha_dot(t) / self.schedule.alpha(t)
        to_masks = self._masks(x.device).double() / self.num_masks - one_hot(x, self.vocab_size)
        return (expand_time(rate, x) * ~self.is_mask(x))[..., None] * to_masks

    def _reverse_rates(self, p0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return p0 * (self.hazard(t) * self.is_mask(xt))[..., None] * ~self._masks(p0.device)

    def nelbo_rate(
        self,
        law: Law,
        x0: Int64[Tensor, "b *s"],
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        where: Bool[Tensor, "b *s"] | None = None,
    ) -> Float[Tensor, "b *s"]:
        """hazard(t) times the cross-entropy of x_0, at masked sites only."""
        masked = self.is_mask(xt) if where is None else self.is_mask(xt) & where
        nll = -self._sites(law, "nelbo_rate").token_log_prob(x0, masked).double()
        rate = expand_time(self.hazard(t), xt).expand(xt.shape)[masked] * nll
        return torch.zeros(xt.shape, dtype=rate.dtype, device=xt.device).masked_scatter(masked, rate)


class Lifting(StepLaw):
    """The law of x_s given x_t of `MultiMask`: a mask stays, with its id or a new one, or a value is drawn."""

    def __init__(
        self,
        law: SiteLaw,
        xt: Int64[Tensor, "b *s"],
        masked: Bool[Tensor, "b *s"],
        lift: Tensor,
        process: MultiMask,
        rehash: bool,
    ) -> None:
        self.law, self.xt, self.masked, self.lift = law, xt, masked, lift
        self.process, self.rehash = process, rehash

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        u = rng.fold(_POSITIONS).uniform(self.xt.shape, self.xt.device)
        where = self.masked & (u < self.lift)
        commit, after = torch.full(self.xt.shape, torch.nan, device=self.xt.device), self.xt
        if self.rehash:
            new = self.process.draw_masks(rng.fold(_REHASH).uniform(after.shape, after.device))
            after = torch.where(self.masked, new, after)
        if not bool(where.any()):
            return after, commit
        tokens, log_probs = self.law.sample_at(where, rng.fold(_VALUES))
        return after.masked_scatter(where, tokens), commit.masked_scatter(where, log_probs.to(commit.dtype))

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        v = self.process.vocab_size
        everywhere = torch.ones_like(self.masked) if where is None else where
        out = one_hot(self.xt[everywhere], v).log()
        open_sites = self.masked & everywhere
        if bool(open_sites.any()):
            lift, is_mask = self.lift.expand(self.xt.shape)[open_sites][:, None], self.process._masks(out.device)
            lifted = self.law.log_probs(open_sites).double() + lift.log()
            ids = is_mask.double() / self.process.num_masks if self.rehash else one_hot(self.xt[open_sites], v)
            out = out.index_put(
                (self.masked[everywhere],), torch.where(is_mask, torch.log1p(-lift) + ids.log(), lifted)
            )
        return out if where is not None else out.reshape(*self.xt.shape, v)

    def only(self, editable: State) -> Lifting:
        """Masks outside `editable` stay as they are, so that no value is asked for there."""
        assert isinstance(editable, Tensor)
        return Lifting(self.law, self.xt, self.masked & editable, self.lift, self.process, self.rehash)

    def map(self, fn: LogProbMap) -> Lifting:
        """`fn` changes the values' law, not the chance of being lifted."""
        return Lifting(self.law.map(fn), self.xt, self.masked, self.lift, self.process, self.rehash)
