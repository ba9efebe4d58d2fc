"""Samplers: one step from x_t to x_s."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import Law, State
from unmask.process import Process
from unmask.rng import Rng


@dataclass(frozen=True, kw_only=True, eq=False)
class Carry:
    """What a sampler remembers between steps; samplers with a memory (clocks, past slopes, weights) extend it.

    Args:
        commit_log_prob: per site, the log-probability that the model gave to the value set in the last step; NaN
            where none was.
        remasked: sites that the last step took back to noise, boolean; None for samplers that never do.
    """

    commit_log_prob: State | None = None
    remasked: State | None = None


class Sampler(ABC):
    """One reverse step. A subclass is a frozen keyword-only dataclass: a process and numbers; its state is the carry.

    Its docstring says whether it is *exact* (targets the model's law) or *heuristic*.
    """

    @abstractmethod
    def prior(self, shape: Any, rng: Rng) -> State:
        """The state at t = 1 from which sampling starts."""

    def init(self, x: State) -> Carry:
        """The carry before the first step."""
        return Carry()

    @abstractmethod
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
    ) -> tuple[State, Carry]:
        """From x at time t to time s < t; `rng` is this step's own stream.

        `editable` tells which sites the step may set (None: all). The loop restores the others in any case; a sampler
        that ranks, counts or spends calls on sites must leave them out itself.
        """


class KernelSampler(Sampler):
    """A sampler whose step is one draw from a law that it can tell: its transition kernel."""

    if TYPE_CHECKING:  # a field of most subclasses, derived in some

        @property
        def process(self) -> Process: ...

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    @abstractmethod
    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> Law:
        """The law of x_s given x_t = x."""

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
    ) -> tuple[State, Carry]:
        law = self.transition(denoiser, x, t, s, **cond)
        after, commit = (law if editable is None else law.only(editable)).draw(rng)
        return after, Carry(commit_log_prob=commit, remasked=self.process.remasked(after))
