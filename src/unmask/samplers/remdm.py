"""Re-masking samplers: decoded tokens may be taken back, at the same marginals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.law import LogProbMap, State, StepLaw
from unmask.loss import require
from unmask.ops import expand_time, one_hot, safe_log
from unmask.processes.masked import Masked, Unmasking
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler
from unmask.samplers.ancestral import Ancestral

_REMASK = 101  # apart from the streams of the step that reveals, which are those of ancestral sampling
_MOST_BY_CONFIDENCE = 1 / math.e  # softmax weights of numbers in [0, 1] are at most e times their mean

Rule = Callable[[Masked, Tensor, Tensor], Tensor]
"""(process, t, s) -> sigma, the chance that a decoded token is re-masked in the step t -> s; times and sigma (b,)."""


def most(process: Masked, t: Tensor, s: Tensor) -> Tensor:
    """sigma_max = min(1, (1 - alpha_s) / alpha_t): beyond it there are too few masks to make up for."""
    ratio = process.schedule.noise(s) / process.schedule.alpha(t)
    return ratio.nan_to_num(nan=0.0).clamp(max=1.0)  # from t = 1 infinite, or in one step to s = 0 undefined


def cap(eta: float) -> Rule:
    """min(eta, sigma_max).

    Raises:
        ValueError: for eta outside [0, 1].
    """
    _share(eta, "cap")
    return partial(_capped, eta=eta)


def rescale(eta: float) -> Rule:
    """eta sigma_max.

    Raises:
        ValueError: for eta outside [0, 1].
    """
    _share(eta, "rescale")
    return partial(_rescaled, eta=eta)


def _capped(process: Masked, t: Tensor, s: Tensor, *, eta: float) -> Tensor:
    return most(process, t, s).clamp(max=eta)


def _rescaled(process: Masked, t: Tensor, s: Tensor, *, eta: float) -> Tensor:
    return eta * most(process, t, s)


def _share(eta: float, name: str) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{name}: eta={eta}, wanted a number in [0, 1]; 0 re-masks nothing")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A loop: down to `start` the noise falls to that of alpha, stays there until `end`, and then falls to none.

    Tokens are re-masked inside the window only, where each step takes back as many as it reveals.

    Args:
        start, end: times, 1 > start > end > 0.
        alpha: the share of decoded tokens in the window, in (0, 1).

    Raises:
        ValueError: for numbers outside these ranges.
    """

    start: float = 0.55
    end: float = 0.05
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if not (1 > self.start > self.end > 0 and 0 < self.alpha < 1):
            raise ValueError(f"Window: met {self}, wanted 1 > start > end > 0 and alpha in (0, 1)")

    def level(self, process: Masked, t: Tensor) -> Tensor:
        """The time at which the process has the noise that the loop wants at t."""
        held = process.schedule.inverse(torch.full_like(t, self.alpha))
        before = held + (1 - held) * (t - self.start) / (1 - self.start)
        return torch.where(t > self.start, before, held * (t / self.end).clamp(max=1.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded(Carry):
    """The probability that the model gave to each token when it was decoded, (b, *s); None before the first step."""

    confidence: Float[Tensor, "b *s"] | None = None


@dataclass(frozen=True, kw_only=True)
class ReMDM(Sampler):
    """Ancestral sampling of masks that also takes decoded tokens back, with probability sigma, to decide them anew.

        p(x_s = mask | x_t = token) = sigma,
        p(x_s = token | x_t = mask) = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)  p(x_0 = token | x_t).

    Masks are revealed so much faster that the marginals q(x_s | x_0) stay those of the process, for any sigma up to
    sigma_max = min(1, (1 - alpha_s) / alpha_t): any denoiser of masks will do.

    Exact in the limit of many steps for the exact denoiser, as `Ancestral` is; sigma = 0 is `Ancestral`, to the bit.
    For a denoiser that errs where little is decoded, early mistakes can be mended, and more steps go on helping when
    there are more of them than tokens. Filters make it heuristic.

    By confidence, tokens are re-masked unequally: of U decoded tokens, that which the model gave probability psi when
    it was decoded has

        sigma_i = sigma U exp(-psi_i) / sum_j exp(-psi_j),

    of mean sigma, so that the share of masks stays 1 - alpha_s on average over sites (not at each site). The paper
    divides one sigma among all tokens and reveals at sigma = 0, which leaves more masks than the process has. Tokens
    that were there from the beginning count as psi = 1.

    Args:
        process: the masked process.
        sigma: the rule: `cap(eta)`, `rescale(eta)`, `most`, or any other.
        by_confidence: re-mask unequally; sigma is then at most 1/e, so that no sigma_i exceeds 1.
        window: hold the noise for a while and re-mask only then; None: re-mask all the time.
        temperature, top_k, top_p: of the values' law, as for `Ancestral`.

    Raises:
        ValueError: for settings that `Ancestral` refuses; in a step, for a rule that leaves [0, sigma_max].

    References:
        Wang, Schiff, Sahoo, Kuleshov, "Remasking discrete diffusion models with inference-time scaling", 2025,
        arXiv:2503.00307.
    """

    process: Masked
    sigma: Rule
    by_confidence: bool = False
    window: Window | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        require(self, self.process, Masked, "it re-masks and reveals masks")
        self._filters()

    def _filters(self) -> list[LogProbMap]:
        plain = Ancestral(process=self.process, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        return plain.filters()

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    def init(self, x: State) -> Decoded:
        return Decoded()

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> Remasking:
        """The site-wise law of x_s given x_t = x.

        Raises:
            ValueError: by confidence, where it depends on more than x.
        """
        if self.by_confidence:
            raise ValueError("ReMDM.transition: by_confidence, a step depends on how the tokens were decoded")
        return self._kernel(denoiser, x, t, s, None, None, **cond)

    def _kernel(
        self,
        denoiser: Denoiser,
        x: State,
        t: Tensor,
        s: Tensor,
        confidence: Tensor | None,
        editable: Tensor | None,
        **cond: Any,
    ) -> Remasking:
        tokens = self.process._tokens(x, "ReMDM")
        sigma = torch.zeros_like(t)
        if self.window is None:
            sigma = self._sigma(t, s)
        else:
            t, s = self.window.level(self.process, t), self.window.level(self.process, s)
            sigma = torch.where(t == s, self._sigma(t, s), sigma)
        schedule, law = self.process.schedule, ask(denoiser, tokens, t, **cond)
        for fn in self._filters():
            law = law.map(fn)
        masked = tokens == self.process.mask_id
        reveal = self.process.reveal_probability(t, s) + sigma * schedule.alpha(t) / schedule.noise(t)
        reveal = reveal.clamp(max=1.0)  # sigma_max makes it 1, give or take the rounding
        decoded = ~masked if editable is None else ~masked & editable
        taken = expand_time(sigma, tokens) * decoded
        if self.by_confidence:
            taken = taken * _weights(decoded, confidence)
        masked = masked if editable is None else masked & editable
        return Remasking(Unmasking(law, tokens, masked, expand_time(reveal, tokens), self.process), taken)

    def _sigma(self, t: Tensor, s: Tensor) -> Tensor:
        sigma, highest = self.sigma(self.process, t, s), most(self.process, t, s)
        if not bool(((sigma >= 0) & (sigma <= highest)).all()):
            raise ValueError(
                f"ReMDM: the rule {self.sigma} gave {sigma.tolist()[:3]}... for steps that allow "
                f"[0, {highest.tolist()[:3]}...]; clamp it with `most`"
            )
        return sigma.clamp(max=_MOST_BY_CONFIDENCE) if self.by_confidence else sigma

    def step(
        self,
        denoiser: Denoiser,
        x: State,
        t: Tensor,
        s: Tensor,
        carry: Carry,
        rng: Rng,
        *,
        editable: State | None = None,
        **cond: Any,
    ) -> tuple[State, Decoded]:
        assert isinstance(carry, Decoded)
        assert editable is None or isinstance(editable, Tensor)
        law = self._kernel(denoiser, x, t, s, carry.confidence, editable, **cond)
        after, commit = law.draw(rng)
        confidence = None
        if self.by_confidence:
            before = torch.ones_like(commit) if carry.confidence is None else carry.confidence
            confidence = torch.where(commit.isnan(), before, commit.exp())
        return after, Decoded(commit_log_prob=commit, remasked=after == self.process.mask_id, confidence=confidence)


def _weights(decoded: Bool[Tensor, "b *s"], confidence: Tensor | None) -> Float[Tensor, "b *s"]:
    """exp(-psi) over its mean in the row's decoded sites, float64."""
    psi = torch.ones(decoded.shape, device=decoded.device) if confidence is None else confidence
    weight = torch.exp(-psi.double()) * decoded
    mean = weight.flatten(1).sum(1) / decoded.flatten(1).sum(1).clamp(min=1)
    return weight / expand_time(mean.where(mean > 0, 1.0), weight)


class Remasking(StepLaw):
    """The law of x_s: masks are revealed or stay, decoded tokens stay or are re-masked.

    Args:
        revealing: what happens to masks.
        sigma: the chance of each decoded token to be re-masked, (b, *s); zero where there is no such token.
    """

    def __init__(self, revealing: Unmasking, sigma: Float[Tensor, "b *s"]) -> None:
        self.revealing, self.sigma = revealing, sigma

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        after, commit = self.revealing.draw(rng)
        taken = rng.fold(_REMASK).uniform(after.shape, after.device) < self.sigma
        return after.masked_fill(taken, self.revealing.process.mask_id), commit

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        everywhere = torch.ones_like(self.revealing.masked) if where is None else where
        process, sigma = self.revealing.process, self.sigma[everywhere][:, None]
        mask = one_hot(torch.tensor(process.mask_id, device=sigma.device), process.vocab_size)
        base = self.revealing.log_probs(everywhere)
        out = torch.where(sigma > 0, safe_log((1 - sigma) * base.exp() + sigma * mask), base)
        return out if where is not None else out.reshape(*self.sigma.shape, -1)

    def only(self, editable: State) -> Remasking:
        """Sites outside `editable` stay as they are."""
        assert isinstance(editable, Tensor)
        return Remasking(self.revealing.only(editable), self.sigma * editable)

    def map(self, fn: LogProbMap) -> Remasking:
        """`fn` changes the values' law, not the chances to be revealed or re-masked."""
        return Remasking(self.revealing.map(fn), self.sigma)
