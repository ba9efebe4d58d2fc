"""Correctors: steps at one time, which keep the law of the noisy state and mend what a sampler got wrong."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.jumps import Forward, WeightedSum, reverse_jumps
from unmask.leaping import LEAP, Leap
from unmask.loss import require
from unmask.ops import draw_categorical, expand_time, safe_log
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.rng import Rng

_SITES, _VALUES = 1, 2


@dataclass(frozen=True, kw_only=True)
class Corrector(ABC):
    """A step at a fixed time that keeps the law p_s of x_s, given the exact denoiser.

    Args:
        process: the noise.
    """

    process: DiscreteProcess

    def __post_init__(self) -> None:
        require(self, self.process, DiscreteProcess, "it resamples discrete sites")

    @abstractmethod
    def correct(
        self, denoiser: Denoiser, x: Tensor, s: Tensor, h: Tensor, allowed: Tensor, rng: Rng, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        """The new tokens at time s in (0, 1), after a step of t - s = h, and the scores of those that were drawn."""


@dataclass(frozen=True, kw_only=True)
class ForwardBackward(Corrector):
    """A leap of length size (t - s) at the sum of the forward and the reverse rates, under which p_s is stationary.

    Jumps of several sites at once keep p_s to first order in the length only. One network call.

    Args:
        process: any noise on discrete sites.
        size: length of a leap, in steps of the predictor, > 0.
    """

    size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.size) and self.size > 0):
            raise ValueError(f"ForwardBackward: size={self.size}, wanted a finite number > 0")

    def transition(self, denoiser: Denoiser, x: Tensor, s: Tensor, h: Tensor, **cond: Any) -> Leap:
        """The law of the corrected tokens."""
        law, span, once = ask(denoiser, x, s, **cond), self.size * h, torch.ones_like(x, dtype=torch.float64)
        jumps = reverse_jumps(self.process, law, x, s, span), Forward(self.process, x, s, span)
        return Leap(WeightedSum([(part, once) for part in jumps], x), x, LEAP)

    def correct(
        self, denoiser: Denoiser, x: Tensor, s: Tensor, h: Tensor, allowed: Tensor, rng: Rng, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        return self.transition(denoiser, x, s, h, **cond).only(allowed).draw(rng)


@dataclass(frozen=True, kw_only=True)
class Gibbs(Corrector):
    """Random sites are drawn anew given all others, from what the model knows about them *without* their own token:

        p(x_s^i | rest)  =  sum_{x_0} q(x_s^i | x_0) p(x_0^i | rest),
        p(x_0^i | rest)  proportional to  p(x_0^i | x_s) / q(x_s^i | x_0^i)   (leave one out).

    What a masked model says about a token that it sees forgets the rest: it is asked with the chosen sites masked. With
    one site at a time p_s is kept exactly; several at once are drawn as if the others stood still, or for masks were
    not there: heuristic. One network call, the head at the chosen sites only.

    Args:
        process: masked noise, or noise that can lead from any token to any other.
        num_sites: how many sites of each row are drawn, >= 1.
    """

    num_sites: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_sites < 1:
            raise ValueError(f"Gibbs: num_sites={self.num_sites}, wanted at least one site")

    def conditionals(
        self, denoiser: Denoiser, x: Int64[Tensor, "b *s"], s: Tensor, where: Bool[Tensor, "b *s"], **cond: Any
    ) -> Float[Tensor, "n v"]:
        """The law of x_s^i given the other sites, at the n sites i of `where`.

        Raises:
            ValueError: for noise under which a token excludes some x_0 for sure.
        """
        probe = x.masked_fill(where, self.process.mask_id) if isinstance(self.process, Masked) else x
        tokens, time = probe[where], expand_time(s, x).expand(x.shape)[where]
        evidence = self.process.likelihood(tokens, torch.zeros_like(time), time)
        if bool((evidence <= 0).any()):
            raise ValueError(
                f"Gibbs: under {type(self.process).__name__} noise some tokens exclude some x_0 for sure, so that what "
                "the model says there forgets the other sites; wanted Masked, or noise that leads from any token to any"
            )
        clean = ask(denoiser, probe, s, sites=where, **cond).log_probs(where).double().exp() / evidence
        return self.process.marginal(clean / clean.sum(-1, keepdim=True), time)

    def correct(
        self, denoiser: Denoiser, x: Tensor, s: Tensor, h: Tensor, allowed: Tensor, rng: Rng, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        score = rng.fold(_SITES).uniform(x.shape, x.device).where(allowed, -1.0).flatten(1)
        first = score.topk(min(self.num_sites, score.shape[1]), dim=1).indices
        where = torch.zeros_like(score, dtype=torch.bool).scatter(1, first, True).reshape(x.shape) & allowed
        commit = torch.full(x.shape, torch.nan, dtype=torch.float64, device=x.device)
        if not bool(where.any()):
            return x, commit
        probs = self.conditionals(denoiser, x, s, where, **cond)
        values = draw_categorical(safe_log(probs), rng.fold(_VALUES).uniform(x.shape, x.device)[where])
        scores = probs.gather(1, values[:, None]).squeeze(1).log()
        return x.masked_scatter(where, values), commit.masked_scatter(where, scores)
