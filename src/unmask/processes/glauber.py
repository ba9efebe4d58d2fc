"""Round-robin single-site noise, reversed by Glauber (heat-bath) dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.columns import keep_fixed
from unmask.law import Law, State
from unmask.process import Process
from unmask.rng import Rng

_KEPT, _VALUE = 1, 2


@dataclass(frozen=True, kw_only=True)
class Glauber(Process):
    """A chain of num_rounds * length steps; step k visits one site, the sites taking turns from left to right.

    At a visit the symbol z is 'keep' with probability `keep`, and then the token stays (it is *signal*), else z is one
    of the v tokens, uniformly, and replaces it (it is *noise*, even if it happens to be the same token). The law of
    x_{k-1} at the visited site given the other sites of x_k is all that reversal needs, because these other sites did
    not change; drawing from it, whatever x_k has at the site itself, is a heat-bath step that takes the law of x_k to
    that of x_{k-1} exactly. After the last step a token is left with probability keep ** num_rounds.

    Time t means the first round(t * num_rounds * length) steps; a grid of as many equal times visits one site each.

    Args:
        vocab_size: v, the number of tokens.
        num_rounds: how often every site is visited.
        keep: probability of the 'keep' symbol, strictly between 0 and 1.

    Raises:
        ValueError: for values outside these ranges.

    References:
        Varma, Nagaraj, Shanmugam, "Glauber generative model: discrete diffusion models via binary classification",
        2024, arXiv:2405.17035.
    """

    vocab_size: int
    num_rounds: int
    keep: float = 0.5

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or self.num_rounds < 1 or not 0 < self.keep < 1:
            raise ValueError(
                f"Glauber: vocab_size={self.vocab_size}, num_rounds={self.num_rounds}, keep={self.keep}; wanted at "
                "least 2 tokens, at least 1 round, and 0 < keep < 1"
            )

    @property
    def log_signal_odds(self) -> float:
        """log( keep * v / (1 - keep) ): the log-odds of 'signal' for a token that the other sites make certain."""
        return math.log(self.keep) + math.log(self.vocab_size) - math.log1p(-self.keep)

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return (rng.fold(_VALUE).uniform(tuple(shape)) * self.vocab_size).long()

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> State:
        if x1 is not None:
            raise ValueError("Glauber.corrupt: met an end point x1, but this noise is drawn independently; omit x1")
        return self.corrupt_canvas(x0, t, rng)

    def corrupt_canvas(
        self,
        x0: State,
        t: Tensor,
        rng: Rng,
        *,
        editable: State | None = None,
        attention_mask: Bool[Tensor, "b l"] | None = None,
    ) -> State:
        tokens = self.tokens(x0, "corrupt")
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
        noisy = self.corrupt_steps(tokens, self.step_of(t.expand(len(tokens)), real), rng, real)
        return keep_fixed(tokens, noisy, editable)

    def corrupt_steps(
        self, x0: Int64[Tensor, "b l"], step: Int64[Tensor, " b"], rng: Rng, real: Bool[Tensor, "b l"]
    ) -> Int64[Tensor, "b l"]:
        """A draw of x_k after `step` visits of the real sites; padding stays."""
        kept = rng.fold(_KEPT).uniform(x0.shape, x0.device) < self.keep ** self.visits(step, real).double()
        noise = (rng.fold(_VALUE).uniform(x0.shape, x0.device) * self.vocab_size).long()
        return x0.where(kept, noise)

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """`law` itself: the model of this process is the heat-bath law of x_s one step before t, not a law of x_0.

        Raises:
            ValueError: if s is not one step before t.
        """
        real = torch.ones_like(self.tokens(xt, "reverse"), dtype=torch.bool)
        gap = self.step_of(t.expand(len(real)), real) - self.step_of(s.expand(len(real)), real)
        if not bool((gap == 1).all()):
            raise ValueError(
                f"Glauber.reverse: from t to s are {gap.unique().tolist()} visits, wanted 1 (one site at a time); use "
                "num_steps = num_rounds * length, or the GlauberSteps sampler for coarser grids"
            )
        return law

    # -- which site when ----------------------------------------------------------------------------------------------

    def places(self, real: Bool[Tensor, "b l"]) -> tuple[Int64[Tensor, " b"], Int64[Tensor, "b l"]]:
        """(number of real sites of each row, place of each site among them)."""
        return real.sum(1).clamp(min=1), real.cumsum(1) - 1

    def step_of(self, t: Tensor, real: Bool[Tensor, "b l"]) -> Int64[Tensor, " b"]:
        """How many visits have been made at time t."""
        return torch.round(t.to(real.device) * (self.num_rounds * self.places(real)[0])).long()

    def random_step(self, u: Float[Tensor, " b"], real: Bool[Tensor, "b l"]) -> Int64[Tensor, " b"]:
        """Uniform in 0 .. all of a row's visits but the last, by a uniform u; 0 for rows of padding alone."""
        total = self.num_rounds * real.sum(1)
        return torch.minimum((u.to(real.device) * total).long(), (total - 1).clamp(min=0))

    def time_of(self, step: Int64[Tensor, " b"], real: Bool[Tensor, "b l"]) -> Tensor:
        """The time after `step` visits."""
        return step.double() / (self.num_rounds * self.places(real)[0])

    def visits(self, step: Int64[Tensor, " b"], real: Bool[Tensor, "b l"]) -> Int64[Tensor, "b l"]:
        """How often each site was visited in the first `step` visits of its row; padding never."""
        length, place = self.places(real)
        times = torch.div(step[:, None] - place + length[:, None] - 1, length[:, None], rounding_mode="floor")
        return times.clamp(min=0).masked_fill(~real, 0)

    def visited(self, step: Int64[Tensor, " b"], real: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        """The one site of each row that visit number `step` = 1, 2, ... is made to; none for step 0."""
        length, place = self.places(real)
        return real & (place == ((step - 1) % length)[:, None]) & (step > 0)[:, None]

    def tokens(self, x: State, operation: str) -> Tensor:
        """x, if it is one int64 tensor (b, l)."""
        if isinstance(x, dict) or x.dtype != torch.int64 or x.ndim != 2:
            met: Any = "a dict" if isinstance(x, dict) else f"{x.dtype} {tuple(x.shape)}"
            raise TypeError(f"Glauber.{operation}: met {met}, wanted an int64 tensor of tokens (b, l)")
        return x
