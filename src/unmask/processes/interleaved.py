"""Noise that visits one element at a time, tokens and real numbers in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.law import Law, State
from unmask.process import Process
from unmask.processes.glauber import Glauber
from unmask.rng import Rng

TOKENS, VALUES = "tokens", "values"
_TOKENS, _VALUES = 1, 2


@dataclass(frozen=True, kw_only=True)
class Interleaved(Process):
    """Rounds of visits to l tokens and then m numbers of each row, left to right, one element a step.

    A visit to a token is that of `Glauber`: it stays with probability `keep`, or a uniform token replaces it. A visit
    to a number runs u from 0 to 1 in

        y_u = a^u y_0 + sqrt(1 - a^2u) eps,   a the `retention`, y_0 the number before the visit.

    Nothing else changes meanwhile, so that a step is undone by a draw of one element given all others, however these
    depend on each other. Numbers should have mean 0 and variance 1. After all rounds a token is left with probability
    keep ** num_rounds, and a ** num_rounds of a number.

    States are dicts of "tokens" (b, l), int64, and "values" (b, m), floating. Time t means the first
    round(t num_rounds (l + m)) steps. All rows have the same elements: there is no padding.

    Args:
        tokens: the tokens' noise, which also tells the number of rounds.
        retention: a, in (0, 1).

    Raises:
        ValueError: for a retention outside (0, 1).

    References:
        Anil et al., "Interleaved Gibbs diffusion for constrained generation", 2025, arXiv:2502.13450.
    """

    tokens: Glauber
    retention: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.retention < 1:
            raise ValueError(f"Interleaved: retention={self.retention}, wanted a number in (0, 1)")

    def prior(self, shape: Mapping[str, Sequence[int]], rng: Rng) -> State:
        tokens = self.tokens.prior(shape[TOKENS], rng.fold(_TOKENS))
        return {TOKENS: tokens, VALUES: rng.fold(_VALUES).normal(tuple(shape[VALUES])).float()}

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> State:
        if x1 is not None:
            raise ValueError("Interleaved.corrupt: met an end point x1, but this noise is drawn independently; omit x1")
        columns = self.columns(x0, "corrupt")
        return self.corrupt_steps(columns, self.step_of(t.expand(len(columns[TOKENS])), columns), rng)

    def corrupt_steps(
        self, x0: dict[str, Tensor], step: Int64[Tensor, " b"], rng: Rng, given: Bool[Tensor, "b n"] | None = None
    ) -> dict[str, Tensor]:
        """A draw after `step` visits; elements of `given` stay as they are."""
        tokens, values = x0[TOKENS], x0[VALUES]
        visits, length = self.visits(step, x0), tokens.shape[1]
        if given is not None:
            visits = visits.masked_fill(given, 0)
        kept = rng.fold(_TOKENS, 1).uniform(tokens.shape, tokens.device) < self.tokens.keep ** visits[:, :length]
        noise = (rng.fold(_TOKENS, 2).uniform(tokens.shape, tokens.device) * self.tokens.vocab_size).long()
        left = self.retention ** visits[:, length:].double()
        moved = left * values + (1 - left**2).sqrt() * rng.fold(_VALUES).normal(values.shape, values.device)
        return {TOKENS: tokens.where(kept, noise), VALUES: moved.to(values.dtype)}

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """Refused: a visit to a number is undone in several smaller steps, which `InterleavedSteps` takes.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"Interleaved.reverse: met a {type(law).__name__}, but one law does not undo a visit to a number; sample "
            "with InterleavedSteps"
        )

    # -- which element when -------------------------------------------------------------------------------------------

    def step_of(self, t: Float[Tensor, " b"], x: dict[str, Tensor]) -> Int64[Tensor, " b"]:
        """How many visits have been made at time t."""
        return torch.round(t.to(x[TOKENS].device) * self.num_steps(x)).long()

    def num_steps(self, x: dict[str, Tensor]) -> int:
        """Visits in all rounds."""
        return self.tokens.num_rounds * (x[TOKENS].shape[1] + x[VALUES].shape[1])

    def visits(self, step: Int64[Tensor, " b"], x: dict[str, Tensor]) -> Int64[Tensor, "b n"]:
        """How often each of the n = l + m elements was visited in the first `step` steps."""
        number = x[TOKENS].shape[1] + x[VALUES].shape[1]
        element = torch.arange(number, device=step.device)
        return torch.div(step[:, None] - element + number - 1, number, rounding_mode="floor").clamp(min=0)

    def visited(self, step: Int64[Tensor, " b"], x: dict[str, Tensor]) -> Bool[Tensor, "b n"]:
        """The one element that visit number `step` = 1, 2, ... is made to; none for step 0."""
        number = x[TOKENS].shape[1] + x[VALUES].shape[1]
        element = torch.arange(number, device=step.device)
        return (element == ((step - 1) % number)[:, None]) & (step > 0)[:, None]

    def columns(self, x: State, operation: str) -> dict[str, Tensor]:
        """x, if it holds tokens and values of the same rows."""
        good = isinstance(x, dict) and set(x) == {TOKENS, VALUES}
        if not isinstance(x, dict) or not good or x[TOKENS].dtype != torch.int64 or not x[VALUES].is_floating_point():
            met: Any = sorted(x) if isinstance(x, dict) else "one tensor"
            raise TypeError(
                f"Interleaved.{operation}: met {met}, wanted tokens (b, l), int64, and values (b, m), floating"
            )
        return x
