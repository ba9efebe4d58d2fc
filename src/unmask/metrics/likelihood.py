"""How probable data is under a model: one function for every denoiser and discrete process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.law import State
from unmask.metrics.estimators import Estimator, LeftToRight, LowDiscrepancyTime, Replicates, Target
from unmask.metrics.mask_estimators import ContextGain
from unmask.process import Process
from unmask.processes.masked import Masked
from unmask.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number for all examples together.

    Args:
        value: in `unit`.
        standard_error: of the estimator's draws: how well the figure *for these examples* is known. 0 if exact.
        spread: standard error over examples, draws included: how far the figure would move with other examples of the
            same kind. NaN for a single example.
        unit: such as "bits per token".
    """

    value: float
    standard_error: float
    spread: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.4f} {self.unit} (± {self.spread:.4f} over examples)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihood:
    """Log-likelihoods of a batch of examples, nats.

    Args:
        log_prob: (b,), log p(x) or a lower bound of it, summed over real sites.
        token_log_prob: (b, *s), each site's share of `log_prob`; NaN at padding.
        standard_error: (b,), of `log_prob` over the estimator's draws: from its independent replicates (at most 8, so
            |error| < 2 s.e. holds in about 91% of cases, Student's t with 7 degrees of freedom). 0 if nothing was
            drawn, NaN where `log_prob` is -inf.
        num_tokens: (b,), real sites.
        num_calls: network calls spent on each example.
        kind: "bound" (lower bound of log p) or "exact".
        law: whose likelihood: "model", or "sampler with T steps".
        estimator: how it was estimated.
    """

    log_prob: Float[Tensor, " b"]
    token_log_prob: Float[Tensor, "b *s"]
    standard_error: Float[Tensor, " b"]
    num_tokens: Int64[Tensor, " b"]
    num_calls: int
    kind: str
    law: str
    estimator: Estimator

    def total(self) -> Figure:
        """-log p of all examples together, nats (an upper bound of it if `kind` is "bound")."""
        per_example = self._ratio(torch.ones_like(self.num_tokens), 1.0, "nats")
        count = len(self.log_prob)
        return Figure(
            value=per_example.value * count,
            standard_error=per_example.standard_error * count,
            spread=per_example.spread * count,
            unit="nats",
        )

    def bits_per_token(self) -> Figure:
        """-log2 p per token, all examples pooled."""
        return self._ratio(self.num_tokens, math.log(2), "bits per token")

    def bits_per_character(self, num_characters: Sequence[int] | Tensor) -> Figure:
        """-log2 p per character, all examples pooled; `num_characters` of each example, (b,).

        Raises:
            ValueError: not one count per example.
        """
        counts = torch.as_tensor(num_characters)
        if counts.shape != self.log_prob.shape:
            raise ValueError(
                f"bits_per_character: num_characters has shape {tuple(counts.shape)}, wanted one count for each of the "
                f"{len(self.log_prob)} examples"
            )
        return self._ratio(counts, math.log(2), "bits per character")

    def _ratio(self, units: Tensor, nats_per: float, name: str) -> Figure:
        """sum(nats) / sum(units) with both standard errors; the spread is that of a ratio estimate."""
        nats, size = -self.log_prob.double().cpu() / nats_per, units.double().cpu()
        value = nats.sum() / size.sum()
        return Figure(
            value=float(value),
            standard_error=float(self.standard_error.double().square().sum().sqrt() / nats_per / size.sum()),
            spread=ratio_spread(nats, size),
            unit=name,
        )


def ratio_spread(amounts: Float[Tensor, " n"], sizes: Tensor) -> float:
    """The standard error of sum(amounts) / sum(sizes) over n independent items; NaN for one item.

    References:
        Cochran, "Sampling techniques", 1977, chapter 6.
    """
    count = len(amounts)
    if count < 2:
        return math.nan
    residual = amounts - amounts.sum() / sizes.sum() * sizes
    return float((residual.square().sum() * count / (count - 1)).sqrt() / sizes.sum())


def default_estimator(denoiser: Denoiser, process: Process) -> Estimator:
    """The estimator with the least standard error per network call: the table in docs/concepts/likelihood.md."""
    if isinstance(denoiser, AutoregressiveDenoiser):
        return LeftToRight()
    return ContextGain() if isinstance(process, Masked) else LowDiscrepancyTime()


@torch.no_grad()
def log_likelihood(
    denoiser: Denoiser,
    process: Process,
    x: State,
    *,
    rng: Rng,
    estimator: Estimator | None = None,
    num_calls: int = 32,
    attention_mask: Bool[Tensor, "b l"] | None = None,
    **cond: Any,
) -> Likelihood:
    """log p(x) of each example under a model: exact for autoregressive denoisers, else a lower bound of it.

    An example's draws depend on `rng`'s row and on its own tokens only, not on the batch or the padding.

    Args:
        denoiser: the model, in evaluation mode.
        process: its discrete process (not looked at for an autoregressive denoiser).
        x: clean tokens (b, *s), int64.
        rng: with `rows` set to the global indices of the examples.
        estimator: one of `unmask.metrics.estimators` or `mask_estimators`; None: `default_estimator`.
        num_calls: network calls per example; four times as many halve the standard error. Ignored where nothing is
            drawn.
        attention_mask: True at real tokens; padding is neither noised nor scored.
        cond: further conditions for the denoiser.

    Raises:
        ValueError: the estimator does not fit the denoiser or the process, num_calls is too small, or x holds the mask.
        TypeError: x is not an int64 tensor.
    """
    chosen = default_estimator(denoiser, process) if estimator is None else estimator
    target = _target(denoiser, process, x, attention_mask, cond)
    refusal = chosen.refusal(denoiser, process)
    if refusal is not None:
        raise ValueError(f"log_likelihood: {type(chosen).__name__} does not fit: {refusal}")
    if num_calls < chosen.min_calls:
        raise ValueError(
            f"log_likelihood: num_calls={num_calls}, but {type(chosen).__name__} needs at least {chosen.min_calls}"
            + (", two of them for a standard error" if chosen.min_calls > 1 else "")
        )
    found = chosen.estimate(target, num_calls, rng)
    per_site = found.site_nats.mean(0)
    return Likelihood(
        log_prob=-per_site.flatten(1).sum(1),
        token_log_prob=(-per_site).masked_fill(~target.real, torch.nan),
        standard_error=_standard_error(found),
        num_tokens=target.lengths,
        num_calls=found.num_calls,
        kind=chosen.kind,
        law=chosen.law,
        estimator=chosen,
    )


def _standard_error(found: Replicates) -> Float[Tensor, " b"]:
    """Of the mean of independent replicates, whose variances may differ."""
    sums = found.site_nats.flatten(2).sum(2)
    return torch.zeros_like(sums[0]) if found.deterministic else sums.std(0) / math.sqrt(len(sums))


def _target(
    denoiser: Denoiser, process: Process, x: State, attention_mask: Tensor | None, cond: dict[str, Any]
) -> Target:
    if isinstance(x, dict) or x.dtype != torch.int64:
        met = f"columns {sorted(x)}" if isinstance(x, dict) else f"a {x.dtype} tensor"
        raise TypeError(f"log_likelihood: x is {met}, wanted an int64 tensor of tokens (b, l)")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"log_likelihood: x has shape {tuple(x.shape)}, wanted (b, l) with at least one token")
    real = torch.ones_like(x, dtype=torch.bool) if attention_mask is None else attention_mask
    if real.shape != x.shape:
        raise ValueError(f"log_likelihood: attention_mask has shape {tuple(real.shape)}, wanted {tuple(x.shape)}")
    if isinstance(process, Masked) and bool(((x == process.mask_id) & real).any()):
        row = int(((x == process.mask_id) & real).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"log_likelihood: row {row} holds the mask (token {process.mask_id}), which is never data; "
            "give clean tokens, and padding with an attention_mask"
        )
    return Target(denoiser=denoiser, process=process, x=x, real=real, attention_mask=attention_mask, cond=cond)
