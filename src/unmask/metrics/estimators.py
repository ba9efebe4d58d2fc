"""Estimators of likelihood bounds: which noisy states of an example are scored, and with which weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.law import Categorical, SiteLaw
from unmask.loss import row_positions
from unmask.ops import one_hot
from unmask.process import DiscreteProcess, Process
from unmask.processes.masked import Masked
from unmask.rng import Rng

_SHIFT, _NOISE = 1, 2
MAX_REPLICATES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What is scored: clean examples under a denoiser and a process.

    Args:
        denoiser, process: the model.
        x: clean tokens (b, *s).
        real: (b, *s), True at the sites that count.
        attention_mask, cond: for the denoiser.
    """

    denoiser: Denoiser
    process: Process
    x: Tensor
    real: Bool[Tensor, "b *s"]
    attention_mask: Bool[Tensor, "b l"] | None
    cond: Mapping[str, Any]

    @property
    def discrete(self) -> DiscreteProcess:
        """The process, which `Estimator.fits` has found to be discrete."""
        assert isinstance(self.process, DiscreteProcess)
        return self.process

    @property
    def masked(self) -> Masked:
        """The process, which `Estimator.fits` has found to be masked."""
        assert isinstance(self.process, Masked)
        return self.process

    @property
    def lengths(self) -> Tensor:
        """Real sites per row, (b,)."""
        return self.real.flatten(1).sum(1)

    def law(self, xt: Tensor, t: Tensor) -> SiteLaw:
        """The denoiser's law at times t (b,): one network call."""
        law = self.denoiser(xt, t, attention_mask=self.attention_mask, **self.cond)
        if not isinstance(law, SiteLaw):
            raise TypeError(f"log_likelihood: the denoiser returned a {type(law).__name__}, wanted a law of sites")
        return law

    def corrupt(self, t: Tensor, rng: Rng) -> Tensor:
        """x_t, padding left as it is."""
        xt = self.discrete.corrupt(self.x, t, row_positions(self.attention_mask, rng))
        return xt.where(self.real, self.x)

    def cost(self, where: Bool[Tensor, "b *s"], t: Tensor) -> Float64[Tensor, "b *s"]:
        """-log p(x^i | x outside `where`) at the sites of `where`, zero elsewhere; the head sees these sites only."""
        nats = -self.law(self.x.masked_fill(where, self.masked.mask_id), t).token_log_prob(self.x, where).double()
        return torch.zeros(self.x.shape, dtype=nats.dtype, device=nats.device).masked_scatter(where, nats)


@dataclass(frozen=True, kw_only=True, eq=False)
class Replicates:
    """Independent, unbiased estimates of every site's share of -log p, (r, b, *s), and the network calls they took.

    One replicate and `deterministic` means that there is no sampling error.
    """

    site_nats: Float64[Tensor, "r b *s"]
    num_calls: int
    deterministic: bool = False


class Estimator(ABC):
    """An unbiased estimator of a bound; a subclass is a frozen keyword-only dataclass.

    `kind` is "bound" or "exact"; `law` says about which law the figure is.
    """

    kind: ClassVar[str] = "bound"
    min_calls: ClassVar[int] = 2

    @property
    def law(self) -> str:
        """Whose likelihood is bounded: the model's, or a sampler's."""
        return "model"

    def refusal(self, denoiser: Denoiser, process: Process) -> str | None:
        """Why this estimator does not fit the pair, or None if it does."""
        if isinstance(denoiser, AutoregressiveDenoiser):
            return "an AutoregressiveDenoiser has no noise to draw; use LeftToRight()"
        if not isinstance(process, DiscreteProcess):
            return f"a {type(process).__name__} process has no bound on tokens; wanted a DiscreteProcess"
        return None

    @abstractmethod
    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        """Spend about `num_calls` network calls on each example."""


def shares(num_calls: int) -> list[int]:
    """Calls of each replicate: at most eight replicates, of two calls or more where there are four calls or more.

    Their sizes differ by one at most; the mean of replicates and its standard error stay unbiased when they do.
    """
    count = min(MAX_REPLICATES, max(2, num_calls // 2))
    return [num_calls // count + (i < num_calls % count) for i in range(count)]


def stratified(target: Target, calls: int, rng: Rng) -> Iterator[tuple[Float64[Tensor, " b"], Rng]]:
    """(uniforms (b,), stream) of each call: u_k = (k + shift) / calls, with a random shift per row."""
    shift = rng.fold(_SHIFT).uniform((len(target.x),), target.x.device)
    for k in range(calls):
        yield (k + shift) / calls, rng.fold(_NOISE, k)


def per_row(values: Float[Tensor, " b"], like: Tensor) -> Tensor:
    """(b,) as (b, 1, ..., 1)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


# -- random times ------------------------------------------------------------------------------------------------------


def _time_rate(target: Target, t: Tensor, rng: Rng) -> Tensor:
    xt = target.corrupt(t, rng)
    rate = target.discrete.nelbo_rate(target.law(xt, t), target.x, xt, t)
    return rate.double().where(target.real, 0.0)


def _prior(target: Target) -> Tensor:
    return target.discrete.prior_kl(target.x).double().where(target.real, 0.0)


@dataclass(frozen=True, kw_only=True)
class UniformTime(Estimator):
    """Independent uniform times: KL(q(x_1 | x_0) || prior) + E_t rate(x_t, t), `DiscreteProcess.nelbo_rate`.

    The textbook estimator, here as the baseline. For the masked process its variance is infinite (logarithmically):
    a single mask at a time near 0 has weight 1 / t.

    References:
        Campbell et al., 2022, arXiv:2205.14987; Shi et al., 2024, arXiv:2406.04329.
    """

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        parts = [self._one(target, rng.fold(k)) for k in range(num_calls)]
        return Replicates(site_nats=torch.stack(parts) + _prior(target), num_calls=num_calls)

    def _one(self, target: Target, rng: Rng) -> Tensor:
        t = rng.fold(_SHIFT).uniform((len(target.x),), target.x.device)
        return _time_rate(target, t, rng.fold(_NOISE))


@dataclass(frozen=True, kw_only=True)
class LowDiscrepancyTime(Estimator):
    """As `UniformTime`, with the times of a replicate evenly spread over (0, 1): t_k = (k + shift) / m.

    References:
        Kingma et al., "Variational diffusion models", 2021, arXiv:2107.00630.
    """

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        parts = []
        for r, calls in enumerate(shares(num_calls)):
            draws = stratified(target, calls, rng.fold(r))
            parts.append(sum((_time_rate(target, t, stream) for t, stream in draws), _prior(target) * calls) / calls)
        return Replicates(site_nats=torch.stack(parts), num_calls=num_calls)


@dataclass(frozen=True, kw_only=True)
class FiniteSteps(Estimator):
    """The bound of the ancestral sampler of T equal steps, whose law is not the model's:

        KL(q(x_1 | x_0) || prior) + sum_{k=1}^T E KL( q(x_s | x_t, x_0) || p(x_s | x_t) ),

    where t = k / T and s = (k - 1) / T. The steps of a replicate are evenly spread. The last one, to s = 0, is the
    reconstruction term.

    Args:
        num_steps: T >= 1.

    References:
        Austin et al., 2021, arXiv:2107.03006; Shi et al., 2024, arXiv:2406.04329, section 3.
    """

    num_steps: int

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"FiniteSteps: num_steps={self.num_steps}, wanted at least 1")

    @property
    def law(self) -> str:
        return f"sampler with {self.num_steps} steps"

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        parts = []
        for r, calls in enumerate(shares(num_calls)):
            total = _prior(target) * calls
            for u, stream in stratified(target, calls, rng.fold(r)):
                step = torch.floor(u * self.num_steps).clamp(max=self.num_steps - 1)
                total = total + self.num_steps * self._step_kl(target, step, stream)
            parts.append(total / calls)
        return Replicates(site_nats=torch.stack(parts), num_calls=num_calls)

    def _step_kl(self, target: Target, step: Tensor, rng: Rng) -> Tensor:
        s, t = step / self.num_steps, (step + 1) / self.num_steps
        xt = target.corrupt(t, rng)
        if isinstance(target.process, Masked):
            reveal = per_row(target.process.reveal_probability(t, s), xt)
            return reveal * target.cost((xt == target.process.mask_id) & target.real, t)
        process = target.discrete
        known = Categorical.from_logits(one_hot(target.x, process.vocab_size).log())
        truth, model = (_sites(process.reverse(law, xt, t, s)).log_probs() for law in (known, target.law(xt, t)))
        q = truth.exp()
        kl = torch.where(q > 0, q * (truth - model), 0.0).sum(-1)
        return kl.double().where(target.real, 0.0)


def _sites(law: Any) -> SiteLaw:
    assert isinstance(law, SiteLaw)
    return law


@dataclass(frozen=True, kw_only=True)
class LeftToRight(Estimator):
    """-log p(x) = -sum_i log p(x_i | x_<i): exact, one call, for an `AutoregressiveDenoiser`."""

    kind: ClassVar[str] = "exact"
    min_calls: ClassVar[int] = 1

    def refusal(self, denoiser: Denoiser, process: Process) -> str | None:
        if isinstance(denoiser, AutoregressiveDenoiser):
            return None
        return f"it is for an AutoregressiveDenoiser, met a {type(denoiser).__name__}; use the default estimator"

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        law = target.law(target.x, torch.zeros(len(target.x), dtype=torch.float64, device=target.x.device))
        nats = -law.token_log_prob(target.x, target.real).double()
        out = torch.zeros(target.x.shape, dtype=nats.dtype, device=nats.device).masked_scatter(target.real, nats)
        return Replicates(site_nats=out[None], num_calls=1, deterministic=True)
