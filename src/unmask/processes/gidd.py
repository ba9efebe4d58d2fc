"""Generalised interpolating noise: masks with a passing share of uniform tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.law import Law, LogProbMap, SiteLaw, State, StepLaw
from unmask.ops import expand_time, one_hot, safe_log
from unmask.process import Interpolating
from unmask.rng import Rng
from unmask.schedules.hybrid import Hybrid
from unmask.sums import apart, most_in_pairs, sum_log1p

_EVENT, _VALUES, _KEPT, _NOISE = 1, 2, 3, 4
_FIRST, _LAST = 1e-30, 1 - 1e-12  # at the very ends of time the bound's integrand is a limit: evaluated a hair inside


@dataclass(frozen=True, kw_only=True)
class GIDD(Interpolating):
    """Masking noise in which a token may also become a uniform one, so that the model learns to revise tokens:

        q(x_t | x_0) = ((1 - t) 1[x_t = x_0] + t 1[x_t = mask] + c_t U[x_t]) / (1 + c_t),

    U uniform over the v - 1 states that are not the mask, c_t = B (t (1 - t))^(gamma/2). It starts from all masks.

    Everything is closed. Let z = x_t and W_t(z) the noise part of q(x_t = z). A step from t back to s < t stays at z
    unless noise put z there in between, with probability r_z, times W_t(z) / (alpha_t + W_t(z)) if x_0 = z; then x_s is
    a fresh draw of q(x_s | x_0). So the model is asked at a share r_z of the sites, and not elsewhere.

    `nelbo_rate` is w (KL + IS) of `divergence`, the paper's form, in blocks of bounded memory. It costs (sites,
    vocabulary) arithmetic; with p_uniform = 0 it is the masked bound, at masked sites only.

    Args:
        vocab_size: number of states v, the mask included.
        mask_id: which state is the mask; the data never contains it.
        p_uniform: the share of uniform tokens at t = 1/2, its highest for c_t alone.
        gamma: the hump's exponent, in (0, 2].

    Raises:
        ValueError: if the mask is not one of the states or the only one, or p_uniform or gamma is out of range.

    References:
        von Rutte, Fluri, Ding, Orvieto, Scholkopf, Hofmann, "Generalized interpolating discrete diffusion", 2025,
        arXiv:2503.04482. The paper's model rates put the network's x_0 into q(x_t | x_0) (plug-in); here the law is the
        true one of x_0 | x_t, and its equivalent plug-in law is u(x) ~ law(x) / q(x_t | x_0 = x).
    """

    vocab_size: int
    mask_id: int
    p_uniform: float = 0.1
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(
                f"GIDD: mask_id={self.mask_id} is not one of {self.vocab_size} >= 2 states; vocab_size counts the mask"
            )
        _ = self.schedule  # checks p_uniform and gamma

    @property
    def schedule(self) -> Hybrid:  # type: ignore[override]
        return Hybrid(p_uniform=self.p_uniform, gamma=self.gamma)

    # -- the pieces ---------------------------------------------------------------------------------------------------

    def _pick(self, x: Tensor, at_mask: Tensor, elsewhere: Tensor) -> Tensor:
        """A quantity that depends on a state through being the mask or not."""
        return torch.where(x == self.mask_id, at_mask, elsewhere)

    def _noise_at(self, x: Tensor, t: Tensor) -> Tensor:
        return self._pick(x, t / (1 + self.schedule.hump(t)), self._token_noise(t))

    def _token_noise(self, t: Tensor) -> Tensor:
        """`_noise_at` every state that is not the mask."""
        hump = self.schedule.hump(t)
        return hump / (self.vocab_size - 1) / (1 + hump)

    def _into(self, x: Tensor, t: Tensor) -> Tensor:
        """The rate at which noise puts any token to x."""
        hump = self.schedule.hump(t)
        uniform = (hump + self.schedule.hump_slope(t)) / (self.vocab_size - 1)
        return self._pick(x, torch.ones_like(t), uniform) / ((1 - t) * (1 + hump))

    def _forgotten(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """1 - r_x: given that x stands at t as noise, the probability that it stood there as noise at s, too."""
        half = self.gamma / 2
        if self.p_uniform == 0:
            return self._pick(x, s * (1 - t) / (t * (1 - s)), torch.ones_like(t))
        return self._pick(x, s * (1 - t) / (t * (1 - s)), (s / t) ** half * ((1 - t) / (1 - s)) ** (1 - half))

    def noise_share(self, x: Tensor, t: Tensor) -> Tensor:
        """W_t(x) / (alpha_t + W_t(x)): given x_0 = x and x_t = x, how likely x_t is noise all the same."""
        if self.p_uniform == 0:
            return self._pick(x, t, torch.zeros_like(t))
        half = self.gamma / 2
        odds = self.schedule.height / (self.vocab_size - 1) * t**half * (1 - t) ** (half - 1)
        return self._pick(x, t, 1 / (1 + 1 / odds))  # odds of 0 and infinity give 0 and 1

    # -- the two vectors and their closed consequences ----------------------------------------------------------------

    def mixing(self, t: Tensor) -> Float[Tensor, "*s v"]:
        share = self._uniform_share(t)[..., None]
        is_mask = torch.arange(self.vocab_size, device=t.device) == self.mask_id
        return torch.where(is_mask, 1 - share, share / (self.vocab_size - 1))

    def _uniform_share(self, t: Tensor) -> Tensor:
        """Of the noise, the part that is uniform: c_t / (t + c_t), with its limit at t = 0."""
        if self.p_uniform == 0:
            return torch.zeros_like(t)
        half = self.gamma / 2
        flat = self.schedule.height * (1 - t) ** half
        return flat / (t ** (1 - half) + flat)

    def draw_mixing(self, t: Tensor, u: Float[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
        share, others = self._uniform_share(t), self.vocab_size - 1
        which = (u / share.clamp(min=1e-300) * others).clamp(max=others - 1).long()
        return torch.where(u < share, which + (which >= self.mask_id), self.mask_id)

    def likelihood(self, xt: Int64[Tensor, "*s"], s: Tensor, t: Tensor) -> Float[Tensor, "*s v"]:
        s, t = expand_time(s, xt).expand(xt.shape), expand_time(t, xt).expand(xt.shape)
        kept = self.schedule.alpha(t) / self.schedule.alpha(s)
        noise, half = 1 + self.schedule.hump(t), self.gamma / 2
        rise = t**half - s**half * ((1 - t) / (1 - s)) ** (1 - half)
        uniform = self.schedule.height / (self.vocab_size - 1) * (1 - t) ** half * rise
        jump = self._pick(xt, (t - s) / (1 - s), uniform) / noise
        return jump[..., None] + kept[..., None] * one_hot(xt, self.vocab_size)

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return torch.full(tuple(shape), self.mask_id, dtype=torch.int64)

    def remasked(self, x: State) -> Tensor:
        return self._tokens(x, "remasked") == self.mask_id

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        tokens = self._tokens(xt, "reverse")
        t, s = (expand_time(v, tokens).expand(tokens.shape) for v in (t, s))
        return Revision(self._sites(law, "reverse"), tokens, torch.ones_like(tokens, dtype=torch.bool), t, s, self)

    def _rates_into(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        t = expand_time(t, x).expand(x.shape)
        leaving = self.schedule.alpha_dot(t) / self.schedule.alpha(t)
        return self._into(x, t)[..., None] + leaving[..., None] * one_hot(x, self.vocab_size)

    def forward_rates(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        t = expand_time(t, x).expand(x.shape)
        leaving = self.schedule.alpha_dot(t) / self.schedule.alpha(t)
        arriving = self._into(torch.arange(self.vocab_size, device=x.device), t[..., None])
        return arriving + leaving[..., None] * one_hot(x, self.vocab_size)

    # -- the bound ----------------------------------------------------------------------------------------------------

    def bound_weight(self, x0: Int64[Tensor, "*s"], xt: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s"]:
        """w_t(x_t, x_0): the rate at which noise puts a token to x_t, over q(x_t | x_0); per unit time."""
        t = expand_time(t, xt).clamp(_FIRST, _LAST).expand(xt.shape)
        if self.p_uniform == 0:  # what is not a mask was never put there by noise
            return self._pick(xt, 1 / (t * (1 - t)), torch.zeros_like(t))
        half = self.gamma / 2
        per_noise = self._pick(xt, 1 / (t * (1 - t)), (half * (1 - 2 * t) / t + 1) / (1 - t))
        return per_noise * torch.where(xt == x0, self.noise_share(xt, t), 1.0)

    def divergence(
        self,
        law: Law,
        x0: Int64[Tensor, "b *s"],
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        where: Bool[Tensor, "b *s"] | None = None,
    ) -> Float[Tensor, "b *s"]:
        """KL( q(x_t | x_0) || q(x_t | u) ) + IS( q(x_t | x_0), q(x_t | u) ) at each site, nats; zero outside `where`.

        KL runs over all states, IS(a, b) = a / b - log(a / b) - 1 is taken at the x_t met, and u is the plug-in law
        that stands for `law`: u(x) ~ law(x) / q(x_t | x_0 = x).
        """
        sites = self._sites(law, "divergence")
        active = torch.ones_like(xt, dtype=torch.bool) if where is None else where
        tt = expand_time(t, xt).clamp(_FIRST, _LAST).expand(xt.shape)
        if self.p_uniform > 0:
            return self._blockwise(
                lambda part: self._divergence(sites.log_weights(part), x0[part], xt[part], tt[part]), xt, active
            )
        active = active & (xt == self.mask_id)  # elsewhere x_t = x_0, and both laws know it
        values = -self.schedule.alpha(tt[active]) * sites.token_log_prob(x0, active).double()
        return torch.zeros(xt.shape, dtype=values.dtype, device=xt.device).masked_scatter(active, values)

    def _divergence(self, log_weights: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """`divergence` for rows (n, v), where noise may put any state. Of the states other than x_0, x_t and the mask,
        all are alike: one sum over the vocabulary."""
        alpha, share, same = self.schedule.alpha(t), self.noise_share(z, t), x == z
        mask = torch.full_like(z, self.mask_id)
        chosen, rest = apart(log_weights, z, x, mask)
        at_z, at_x, at_mask = (column.exp() for column in chosen)
        at_mask = at_mask.where((z != mask) & (x != mask), 0.0)  # counted once
        others = rest.sum(1).double() + at_x.where(~same, 0.0) + at_mask
        whole = others + at_z
        at_z, at_x, at_mask, others = at_z / whole, at_x / whole, at_mask / whole, others / whole
        total = others + at_z * share  # q(x_t | x_0 = z) / q(x_t | u), up to alpha + W
        u_x = torch.where(same, at_z * share, at_x) / total
        token_noise, noise_x = self._token_noise(t), self._noise_at(x, t)
        largest = (alpha / token_noise).clamp(max=most_in_pairs(rest.dtype))
        gain = (largest / (total * whole)).clamp(max=torch.finfo(rest.dtype).max).to(rest.dtype)
        gained = token_noise * sum_log1p(rest, gain, float(largest.max())).double()
        for state, u in ((z, (at_z * share / total).where(~same, 0.0)), (mask, at_mask / total)):
            noise = self._noise_at(state, t)
            gained = gained + noise * torch.log1p(alpha * u / noise)
        most = alpha + noise_x
        # the first form is exact where noise is nearly all there is, the second where data is
        lost = torch.where(
            alpha < noise_x,
            torch.log1p(-(alpha * (1 - u_x) / most).clamp(max=0.5)),
            ((alpha * u_x + noise_x) / most).log(),
        )
        kl = -most * lost - gained
        excess = torch.where(same, others * (1 - share) / share, -at_z * (1 - share))  # a / b - 1, no cancellation
        near = torch.log1p(excess.clamp(min=-0.5))
        return kl + excess - torch.where(excess > -0.5, near, total.log())

    def nelbo_rate(
        self,
        law: Law,
        x0: Int64[Tensor, "b *s"],
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        where: Bool[Tensor, "b *s"] | None = None,
    ) -> Float[Tensor, "b *s"]:
        """w_t(x_t, x_0) (KL + IS), per unit time; see `bound_weight` and `divergence`."""
        return self.bound_weight(x0, xt, t) * self.divergence(law, x0, xt, t, where)


class Revision(StepLaw):
    """The law of x_s given x_t of `GIDD`: a token stays unless noise put it there after s, else q(x_s | x_0) anew."""

    def __init__(
        self,
        law: SiteLaw,
        xt: Int64[Tensor, "b *s"],
        open_sites: Bool[Tensor, "b *s"],
        t: Float[Tensor, "b *s"],
        s: Float[Tensor, "b *s"],
        process: GIDD,
    ) -> None:
        self.law, self.xt, self.open_sites, self.t, self.s, self.process = law, xt, open_sites, t, s, process

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Thinned: the value of x_0 is drawn where noise may have come in between, then the chance is corrected.

        The score of a site is the model's log-probability of the value; of a token drawn as noise, the noise's own.
        """
        shape, device = self.xt.shape, self.xt.device
        u = rng.fold(_EVENT).uniform(shape, device)
        tried = self.open_sites & (u >= self.process._forgotten(self.xt, self.s, self.t))
        commit = torch.full(shape, torch.nan, device=device)
        if not bool(tried.any()):
            return self.xt, commit
        values, scores = self.law.sample_at(tried, rng.fold(_VALUES))
        z, t, s = self.xt[tried], self.t[tried], self.s[tried]
        stay = self.process._forgotten(z, s, t)
        stay = torch.where(values == z, 1 - (1 - stay) * self.process.noise_share(z, t), stay)
        from_data = rng.fold(_KEPT).uniform(shape, device)[tried] < self.process.schedule.alpha(s)
        noise = self.process.draw_mixing(s, rng.fold(_NOISE).uniform(shape, device)[tried])
        fresh = torch.where(from_data, values, noise)
        share = self.process._uniform_share(s)
        noise_scores = self.process._pick(noise, 1 - share, share / (self.process.vocab_size - 1)).log()
        redrawn = u[tried] >= stay
        scores = torch.where(from_data, scores.double(), noise_scores).where(redrawn, torch.nan)
        revised = fresh.where(redrawn, z)
        return self.xt.masked_scatter(tried, revised), commit.masked_scatter(tried, scores.to(commit.dtype))

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        v, process = self.process.vocab_size, self.process
        everywhere = torch.ones_like(self.open_sites) if where is None else where
        out = one_hot(self.xt[everywhere], v).log()
        open_sites = self.open_sites & everywhere
        if bool(open_sites.any()):
            z, t, s = self.xt[open_sites], self.t[open_sites], self.s[open_sites]
            p = torch.log_softmax(self.law.log_probs(open_sites).double(), -1).exp()
            stay, share = process._forgotten(z, s, t), process.noise_share(z, t)
            at_z = p.gather(1, z[:, None]).squeeze(1)
            fresh_x0 = p.scatter(1, z[:, None], (at_z * share)[:, None]) * (1 - stay)[:, None]
            fresh = process.marginal(fresh_x0, s)
            stays = stay + (1 - stay) * at_z * (1 - share)
            mixed = safe_log(fresh.scatter_add(1, z[:, None], stays[:, None]))
            out = out.index_put((self.open_sites[everywhere],), mixed)
        return out if where is not None else out.reshape(*self.xt.shape, v)

    def only(self, editable: State) -> Revision:
        """Sites outside `editable` stay, so that no value is asked for there."""
        assert isinstance(editable, Tensor)
        return Revision(self.law, self.xt, self.open_sites & editable, self.t, self.s, self.process)

    def map(self, fn: LogProbMap) -> Revision:
        """`fn` changes the law of x_0, not the noise."""
        return Revision(self.law.map(fn), self.xt, self.open_sites, self.t, self.s, self.process)
