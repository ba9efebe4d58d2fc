"""Any sampler, with corrections between its steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmask.correctors import Corrector
from unmask.denoiser import Denoiser
from unmask.law import State
from unmask.loss import require
from unmask.ops import expand_time
from unmask.process import DiscreteProcess
from unmask.processes.multi_mask import MultiMask
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_PREDICT, _CORRECT = 1, 2


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """Each step of a sampler is followed by steps in place, which pull x_s towards the law that the model gives it.

    **Exact** at every s > 0 in the limit of many corrections of `Gibbs` with one site, whatever the predictor; with
    `ForwardBackward`, of many small ones. The last step, to s = 0, is the predictor's, and its error stays. Masked
    tokens that a corrector sets may be masked again: `Step.remasked` tells.

    Args:
        predictor: any sampler of discrete sites; few corrections want one whose steps end at the grid's times, as those
            of `FirstHitting`, on its own clock, do not.
        corrector: `ForwardBackward` or `Gibbs`, of the same process.
        num_corrections: in each step, >= 1.

    Raises:
        TypeError: for another predictor or corrector.
        ValueError: for a corrector of another process than the predictor's, or less than one correction.

    References:
        Campbell et al., "A continuous time framework for discrete denoising models", 2022, arXiv:2205.14987 (forward
        and backward rates); Zhao, Shi, Mackey, Linderman, "Informed correctors for discrete diffusion models", 2024,
        arXiv:2407.21243 (why masks need to be asked about masked); Liang, Shroff, Liang, "From scores to Gibbs
        correctors: accelerating uniform-rate discrete diffusion models", 2026, arXiv:2605.27352.
    """

    predictor: Sampler
    corrector: Corrector
    num_corrections: int = 1

    def __post_init__(self) -> None:
        require(self, self.predictor, Sampler, "it makes the steps")
        require(self, self.corrector, Corrector, "it keeps the law at one time")
        theirs = getattr(self.predictor, "process", self.corrector.process)
        if theirs != self.corrector.process:
            raise ValueError(
                f"PredictorCorrector: the predictor's process is {theirs}, the corrector's {self.corrector.process}; "
                "wanted the same"
            )
        if self.num_corrections < 1:
            raise ValueError(f"PredictorCorrector: num_corrections={self.num_corrections}, wanted at least one")

    @property
    def process(self) -> DiscreteProcess:
        """The noise of both."""
        return self.corrector.process

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.predictor.prior(shape, rng)

    def init(self, x: State) -> Carry:
        return self.predictor.init(x)

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
        after, carry = self.predictor.step(denoiser, x, t, s, carry, rng.fold(_PREDICT), editable=editable, **cond)
        tokens, commit = self.corrector.process._tokens(after, "PredictorCorrector"), carry.commit_log_prob
        allowed = torch.ones_like(tokens, dtype=torch.bool) if editable is None else editable
        assert isinstance(allowed, Tensor)
        allowed = allowed & expand_time(s > 0, tokens)
        if not bool(allowed.any()):
            return after, carry
        for k in range(self.num_corrections):
            tokens, scores = self.corrector.correct(denoiser, tokens, s, t - s, allowed, rng.fold(_CORRECT, k), **cond)
            if isinstance(commit, Tensor):
                commit = commit.where(scores.isnan(), scores.to(commit.dtype))
        return tokens, replace(carry, commit_log_prob=commit, remasked=self._masks(tokens, carry.remasked))

    def _masks(self, tokens: Tensor, otherwise: State | None) -> State | None:
        """Where a mask stands, if the noise has any."""
        if isinstance(self.process, MultiMask):
            return self.process.is_mask(tokens)
        mask_id = getattr(self.process, "mask_id", None)
        return otherwise if mask_id is None else tokens == mask_id
