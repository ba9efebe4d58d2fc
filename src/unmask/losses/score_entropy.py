"""Denoising score entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.denoisers.score import ScoreLaw
from unmask.law import Law, State
from unmask.loss import Loss, require, row_positions
from unmask.ops import expand_time, low_discrepancy_uniforms
from unmask.process import Interpolating
from unmask.rng import Rng
from unmask.sums import apart

_TIME, _NOISE = 1, 2
_LARGEST_EXPONENT = 80.0  # of float32


@dataclass(frozen=True, kw_only=True)
class ScoreEntropy(Loss):
    """The denoising score entropy, weighted by the rates of the noise:

        -log p(x_0) <= KL( q(x_1 | x_0) || prior )
                       + E_t sum_i sum_{y != x_t} R_t(y -> x_t) ( s_y - r_y log s_y + r_y (log r_y - 1) ),

    with the model's concrete score s and r_y = q(y | x_0) / q(x_t | x_0); one uniform low-discrepancy time per example.
    It is a bound for the reversed chain with jump rates R_t(y -> x_t) s_y, whatever s is: the score need not belong to
    any law of x_0. For a denoiser that returns a law it equals `NELBO`, and `MaskedNELBO` for masked noise.

    Args:
        process: masked, uniform or any other interpolating noise.

    References:
        Lou, Meng, Ermon, "Discrete diffusion modeling by estimating the ratios of the data distribution", 2024,
        arXiv:2310.16834; Campbell et al., 2022, arXiv:2205.14987 (the bound of a reversed chain).
    """

    process: Interpolating
    bound: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, self.process, Interpolating, "noise must jump into a token at one rate from all others")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        tokens, xt, t, real = noised(self.process, x0, rng, attention_mask)
        law = denoiser(xt, t, attention_mask=attention_mask, **cond)
        per_site = score_entropy_rate(self.process, law, tokens, xt, t, real)
        if float(self.process.schedule.alpha(torch.ones((), dtype=torch.float64))) > 0:  # else x_1 has forgotten x_0
            per_site = per_site + self.process.prior_kl(tokens).where(real, 0.0)
        return per_site.flatten(1).sum(1)


def noised(
    process: Interpolating, x0: State, rng: Rng, attention_mask: Bool[Tensor, "b l"] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_0, x_t, t, real tokens): every row at its own evenly spread time, padding left as it is."""
    tokens = process._tokens(x0, "ScoreEntropy")
    rows = rng.row_indices(len(tokens)).to(tokens.device)
    t = low_discrepancy_uniforms(rng.fold(_TIME).scalar(), rows)
    xt = process.corrupt(tokens, t, row_positions(attention_mask, rng.fold(_NOISE)))
    real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
    return tokens, xt.where(real, tokens), t, real


def score_entropy_rate(
    process: Interpolating,
    law: Law,
    x0: Int64[Tensor, "b *s"],
    xt: Int64[Tensor, "b *s"],
    t: Tensor,
    where: Bool[Tensor, "b *s"],
) -> Float[Tensor, "b *s"]:
    """The integrand of `ScoreEntropy` at the sites of `where`, nats per unit time; zero elsewhere.

    The law is asked only where noise can have put x_t: nowhere else does the chain move in reverse.

    Args:
        process: the noise.
        law: the denoiser's; a `ScoreLaw` is asked for its scores, any other law for those it implies.
        x0, xt: clean and noisy tokens.
        t: times, (b,).
        where: real tokens.
    """
    tt = expand_time(t, xt).expand(xt.shape)
    moving = where & (process._noise_at(xt, tt) > 0)
    if not isinstance(law, ScoreLaw):  # R s is the law's reverse rate, R r the one that knows x_0
        return process.nelbo_rate(law, x0, xt, t, moving)
    return process._blockwise(lambda part: _rate(process, law, part, x0[part], xt[part], tt[part]), xt, moving)


def _rate(
    process: Interpolating,
    law: ScoreLaw,
    part: Bool[Tensor, "b *s"],
    x0: Int64[Tensor, " n"],
    x: Int64[Tensor, " n"],
    t: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """`score_entropy_rate` at the n sites of `part`; what depends on time and y alone is made once for each time.

    Where noise can put y, its summand is r h(log s / r) with h(l) = e^l - 1 - l, which cancels nothing as s and r draw
    near; where it cannot, r = 0 leaves s. The clean token has its own.
    """
    times, which = t.unique(return_inverse=True)
    f, base = law.deviations(part), law.base(times)
    noised = process.schedule.noise(times)[:, None] * process.mixing(times).to(base.device).expand_as(base)
    own, evidence = base[which, x].log(), noised[which, x] + process.schedule.alpha(t) * (x0 == x)

    log_s = f.gather(1, x0[:, None]).squeeze(1).double() + base[which, x0].log() - own
    r = (noised[which, x0] + process.schedule.alpha(t)) / evidence
    others = torch.where(x0 == x, 0.0, log_s.exp() - r * log_s + torch.special.xlogy(r, r) - r)
    if bool((noised.sum(1)[which] > noised[which, x]).any()):
        shift = torch.where(noised > 0, base / noised, 1.0).log()
        ratio = f + shift.to(f)[which] + (evidence.log() - own).to(f)[:, None]
        ratio = ratio.scatter(1, x[:, None], 0.0).scatter(1, x0[:, None], 0.0)
        if float(ratio.detach().amax()) > _LARGEST_EXPONENT:
            ratio = ratio.double()
        gap = torch.expm1(ratio) - ratio
        others = others + (gap @ noised.to(gap).T).gather(1, which[:, None]).squeeze(1) / evidence
    if bool((noised == 0).any()):
        (minus_peak, _), rest = apart(f, x, x0)  # f is zero at x_t; from here on it is overwritten
        reached = (rest @ base.where(noised == 0, 0.0).to(rest).T).gather(1, which[:, None]).squeeze(1)
        others = others + reached * (-minus_peak - own).exp()
    return _rate_into(process, x, t) * others


def _rate_into(process: Interpolating, x: Int64[Tensor, " n"], t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """R_t(y -> x), the same for every y != x: the slope of q(x_t' = x | x_t = y) at t' = t, by forward autodiff."""
    noise, alpha = process._noise_at(x, t), process.schedule.alpha(t)

    def arrived(later: Tensor) -> Tensor:
        return process._noise_at(x, later) - process.schedule.alpha(later) / alpha * noise

    slope: Tensor = torch.func.jvp(arrived, (t,), (torch.ones_like(t),))[1]
    return slope
