"""Leaps along the reverse Markov chain: every site jumps at most once, at rates that are held fixed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.jumps import Jumps, reverse_jumps
from unmask.law import LogProbMap, SiteLaw, State, StepLaw
from unmask.loss import require
from unmask.ops import one_hot, safe_log
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
from unmask.rng import Rng
from unmask.sampler import KernelSampler

_WHICH, _VALUES = 1, 2
_NO_RATE = 1e-9  # a step of unit length would make no jump


@dataclass(frozen=True, kw_only=True)
class Rule:
    """From the number of jumps that a site expects in a step to the probability that it makes one.

    Args:
        chance: M >= 0 -> probability.
        peak: where `chance` is largest; it increases up to there.
    """

    chance: Callable[[Tensor], Tensor]
    peak: float = torch.inf

    def highest(self, ceiling: Tensor) -> Tensor:
        """The largest probability for any number of expected jumps up to a ceiling, which may be infinite."""
        return self.chance(ceiling.clamp(max=self.peak))


EULER = Rule(chance=lambda expected: expected.clamp(max=1.0))
"""min(M, 1): a jump with the probability that its rate gives to first order, surely where that exceeds one."""

LEAP = Rule(chance=lambda expected: -torch.expm1(-expected))
"""1 - exp(-M): at least one jump of a Poisson process of M expected ones."""

SINGLE = Rule(chance=lambda expected: expected * torch.exp(-expected), peak=1.0)
"""M exp(-M): one jump of a Poisson process of M expected ones, and no more."""


class Leap(StepLaw):
    """Every site stays, or jumps once, to y in proportion to the expected jumps there.

    A site's uniform is compared with its highest chance first, and the model is asked only about sites below it: not at
    all when there are none, and for masks only about those that are revealed.

    Args:
        jumps: what the sites expect.
        x: (b, *s), what they hold.
        rule: from expected jumps to the probability of one.
        open_sites: those that may jump, boolean (b, *s); None: all.
    """

    def __init__(
        self, jumps: Jumps, x: Int64[Tensor, "b *s"], rule: Rule, open_sites: Bool[Tensor, "b *s"] | None = None
    ) -> None:
        self.jumps, self.x, self.rule = jumps, x, rule
        self.open_sites = torch.ones_like(x, dtype=torch.bool) if open_sites is None else open_sites

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """The tokens, and the log-probability of each target among the targets of its site (NaN where none jumped)."""
        u = rng.fold(_WHICH).uniform(self.x.shape, self.x.device)
        commit = torch.full(self.x.shape, torch.nan, device=self.x.device)
        where = self.open_sites & (u < self.rule.highest(self.jumps.ceiling))
        if not bool(where.any()):
            return self.x, commit
        where, values, scores = self.jumps.draw(where, u, self.rule.chance, rng.fold(_VALUES))
        return self.x.masked_scatter(where, values), commit.masked_scatter(where, scores.to(commit.dtype))

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        sites = torch.ones_like(self.open_sites) if where is None else where
        expected = self.jumps.at(sites) * self.open_sites[sites][:, None]
        total = expected.sum(-1, keepdim=True)
        chance = self.rule.chance(total)
        moves = expected * (chance / total.where(total > 0, 1.0))
        out = safe_log(moves + one_hot(self.x[sites], self.jumps.vocab_size) * (1 - chance))
        return out if where is not None else out.reshape(*self.x.shape, -1)

    def only(self, editable: State) -> Leap:
        """Sites outside `editable` stay, so that no value is asked for there."""
        assert isinstance(editable, Tensor)
        return Leap(self.jumps, self.x, self.rule, self.open_sites & editable)

    def map(self, fn: LogProbMap) -> SiteLaw:
        raise TypeError("Leap.map: the chance of a jump depends on the model's law; filter the denoiser's law instead")


def at_an_end(process: DiscreteProcess, t: Float[Tensor, " b"], s: Float[Tensor, " b"]) -> bool:
    """Whether the step is the process's own reverse step: to s = 0, where what is left is drawn, and from t = 1 unless
    the rates are known to be finite and above zero there, as those of masks mostly are (with a cosine schedule nothing
    would jump).

    Raises:
        ValueError: if some rows are at an end and some are not.
    """
    start = t >= 1
    if isinstance(process, Masked):
        hazard = process.hazard(t)
        start = start & ~(hazard.isfinite() & (hazard > _NO_RATE))
    ends = start | (s <= 0)
    if bool(ends.any()) != bool(ends.all()):
        raise ValueError(
            f"a leap of the reversed process: rows go from t={t.tolist()[:4]}... to s={s.tolist()[:4]}..., some at an "
            "end of time and some not; step rows of such different times apart"
        )
    return bool(ends.all())


@dataclass(frozen=True, kw_only=True)
class Leaping(KernelSampler):
    """One leap a step, whose kernel is a law of independent sites; a subclass says what the rates' jumps become.

    Args:
        process: any noise on discrete sites.
    """

    process: DiscreteProcess

    def __post_init__(self) -> None:
        require(self, self.process, DiscreteProcess, "its steps follow the jump rates of discrete sites")

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """From expected jumps to the probability of one."""

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> SiteLaw:
        """The law of x_s given x_t = x; the network is not called before a value is needed."""
        return self.leap(denoiser, x, t, s, t - s, **cond)

    def leap(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, duration: Tensor, /, **cond: Any) -> SiteLaw:
        """The law of x_s when the rates at t act for `duration` (b,) instead of t - s."""
        tokens = self.process._tokens(x, type(self).__name__)
        law = ask(denoiser, tokens, t, **cond)
        if at_an_end(self.process, t, s):
            return self.process._sites(self.process.reverse(law, tokens, t, s), type(self).__name__)
        return Leap(reverse_jumps(self.process, law, tokens, t, duration), tokens, self.rule)
