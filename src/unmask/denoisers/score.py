"""Networks that predict concrete scores, the ratios p_t(y) / p_t(x_t)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.law import Categorical, LogProbMap, SiteLaw, State
from unmask.ops import expand_time, one_hot
from unmask.process import DiscreteProcess, Interpolating
from unmask.sums import writable

_LEAST_ALPHA = 1e-9


class ScoreLaw(Categorical):
    """The law of x_0 | x_t that a concrete score implies; `log_scores` gives the score itself.

    With pi_t the mixing law and m(y) = alpha u(y) + (1 - alpha) pi_t(y) the noised law of white data u, the network's
    f stands for the score s_y = e^f(y) m(y) / m(x_t). A score is the ratio of joint probabilities that differ at one
    site, and noise acts on that site linearly, so inverting it and applying Bayes' rule gives

        p(x_0 = y | x_t)  is proportional to
        q(x_t | x_0 = y) ( u(y) e^f(y) + pi_t(y) (1 - alpha) / alpha (e^f(y) - sum_z m(z) e^f(z)) ).

    For masked noise pi_t(y) = 0 at data, and f is the logit of the clean token. Where pi_t(y) > 0 an inexact network
    may imply negative weights, which belong to no law; they are set to zero. At alpha = 0 a score says nothing about
    x_0: below alpha = 1e-9 the bracket is evaluated there. The reverse step to s multiplies any error of the law by
    alpha_s, so that the first steps forgive it.

    Args:
        process: the noise.
        xt: (b, *s).
        t: times, (b,).
        data: u > 0, the states that data takes, boolean (v,).
        network: maps flat site indices (n,) to f (n, v).
    """

    def __init__(
        self,
        process: Interpolating,
        xt: Int64[Tensor, "b *s"],
        t: Tensor,
        *,
        data: Bool[Tensor, " v"],
        network: LogProbMap,
    ) -> None:
        self.process, self.xt, self.data, self.network = process, xt, data.to(xt.device), network
        self.t = expand_time(t, xt).expand(xt.shape)
        super().__init__(xt.shape, process.vocab_size, self._clean, device=xt.device)

    def _parts(self, index: Int64[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, f) at flat site indices; f(x_t) = 0, since the ratio of x_t to itself is one."""
        x, t = self.xt.flatten()[index], self.t.flatten()[index]
        return x, t, self.network(index).double().scatter(-1, x[:, None], 0.0)

    def _white(self) -> Tensor:
        return self.data.double() / self.data.sum()

    def _clean(self, index: Int64[Tensor, " n"]) -> Float[Tensor, "n v"]:
        x, t, f = self._parts(index)
        largest = f.amax(-1, keepdim=True)
        scale = (f - largest).exp()  # a common factor cancels; this one cannot overflow
        white, mixing = self._white(), self.process.mixing(t).to(f)
        mean = (self.process.marginal(white.expand_as(f), t) * scale).sum(-1, keepdim=True)
        alpha, noise = self.process.schedule.alpha(t).clamp(min=_LEAST_ALPHA), self.process.schedule.noise(t)
        clean = white * scale + mixing * (noise / alpha)[:, None] * (scale - mean)
        kept = alpha[:, None] * one_hot(x, self.vocab_size)
        weights = (kept + self.process._noise_at(x, t)[:, None]) * clean * self.data
        possible = weights > 0
        return torch.where(possible, weights.where(possible, 1.0).log(), -torch.inf)

    def deviations(self, where: Bool[Tensor, "b *s"]) -> Float[Tensor, "n v"]:
        """f at the sites of `where`, in the network's precision (float32 at least); zero at y = x_t."""
        f = self.network(self._index(where))
        f = f.float() if f.dtype in (torch.float16, torch.bfloat16) else f
        return writable(f).scatter_(-1, self.xt[where][:, None], 0.0)

    def base(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """m(y) at times t: log s_y = f(y) + log m(y) - log m(x_t)."""
        return self.process.marginal(self._white().expand(len(t), -1), t)

    def log_scores(self, where: Bool[Tensor, "b *s"]) -> Float[Tensor, "n v"]:
        """log s_y at the sites of `where`, float64; zero at y = x_t, and -inf where noise cannot put y."""
        x, t, f = self._parts(self._index(where))
        base = self.base(t).log()
        return f + base - base.gather(-1, x[:, None])


class ScoreDenoiser(Denoiser):
    """The law of x_0 | x_t from a network of concrete scores (SEDD), for any interpolating noise.

    The network's output is f = log s_y - log m(y) / m(x_t), its logarithmic deviation from the score of white data.
    For masked noise this takes out the factor alpha / (1 - alpha), which spans many orders of magnitude; for uniform
    noise f is the log-score itself.

    Train it with `ScoreEntropy`, which reads the scores and not the law.

    Args:
        net: maps (tokens (b, l), t (b,), attention_mask=..., **cond) to hidden states (b, l, d); `net.head` maps
            (n, d) to f (n, v).
        process: the noise, masked or uniform or mixed.
        mask_id: the state that data never takes; None if there is none.

    Raises:
        ValueError: if mask_id is not a state of the process.

    References:
        Lou, Meng, Ermon, "Discrete diffusion modeling by estimating the ratios of the data distribution", 2024,
        arXiv:2310.16834; Ou et al., 2024, arXiv:2406.03736 (why the factor of masked noise is exact).
    """

    def __init__(self, net: nn.Module, *, process: Interpolating, mask_id: int | None = None) -> None:
        super().__init__()
        if mask_id is not None and not 0 <= mask_id < process.vocab_size:
            raise ValueError(f"ScoreDenoiser: mask_id={mask_id} is not one of the {process.vocab_size} states")
        self.net, self.process, self.mask_id = net, process, mask_id

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> ScoreLaw:
        if isinstance(xt, dict):
            raise TypeError(f"ScoreDenoiser: met columns {sorted(xt)}, wanted one tensor of tokens (b, l)")
        hidden = self.net(xt, t, attention_mask=attention_mask, **cond).flatten(0, -2)
        head: Any = self.net.head
        data = torch.ones(self.process.vocab_size, dtype=torch.bool)
        if self.mask_id is not None:
            data[self.mask_id] = False
        return ScoreLaw(self.process, xt, t, data=data, network=lambda index: head(hidden.index_select(0, index)))

    def config(self) -> dict[str, Any]:
        return {"mask_id": self.mask_id}


def law_log_scores(
    process: DiscreteProcess,
    law: SiteLaw,
    xt: Int64[Tensor, "b *s"],
    t: Tensor,
    where: Bool[Tensor, "b *s"],
) -> Float[Tensor, "n v"]:
    """log s_y of the score that a law implies, s_y = sum_x p(x_0 = x | x_t) q(y | x_0 = x) / q(x_t | x_0 = x).

    Float64, (n, v) at the sites of `where`; zero at y = x_t, -inf where noise cannot put y. It is the ratio p_t(y) /
    p_t(x_t) wherever noise can have put x_t, which is where jumps happen; a token that noise never makes tells its own
    clean value, and its law knows nothing of the others.

    Args:
        process: any discrete process.
        law: the law of x_0 | x_t.
        xt: (b, *s).
        t: times, (b,).
        where: the sites asked about.
    """
    tt, x = expand_time(t, xt).expand(xt.shape)[where], xt[where]
    scores = process.marginal(process._over_likelihood(law.log_probs(where).double().exp(), x, tt), tt)
    possible = (scores > 0) & (one_hot(x, process.vocab_size) == 0)
    log_scores = torch.where(possible, scores.where(possible, 1.0).log(), -torch.inf)
    return log_scores.scatter(-1, x[:, None], 0.0)
