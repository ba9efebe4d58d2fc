"""Noise that visits one element at a time, tokens and real numbers in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.columns import keep_fixed
from unmask.law import Law, State
from unmask.process import Process
from unmask.processes.glauber import Glauber
from unmask.rng import Rng

TOKENS, VALUES = "tokens", "values"
_KEPT, _NOISE = 1, 2


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
    round(t num_rounds (l + m)) steps. Where rows differ in length, a mask (b, l + m) tells the n = l + m elements that
    are real, tokens first; a row's steps visit its own ones only.

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
        tokens = self.tokens.prior(shape[TOKENS], rng.column(TOKENS))
        return {TOKENS: tokens, VALUES: rng.column(VALUES).normal(tuple(shape[VALUES])).float()}

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> State:
        if x1 is not None:
            raise ValueError("Interleaved.corrupt: met an end point x1, but this noise is drawn independently; omit x1")
        return self.corrupt_canvas(x0, t, rng)

    def corrupt_canvas(
        self,
        x0: State,
        t: Tensor,
        rng: Rng,
        *,
        editable: State | None = None,
        attention_mask: Bool[Tensor, "b n"] | None = None,
    ) -> State:
        columns = self.columns(x0, "corrupt")
        real = self.real(columns, attention_mask, "corrupt")
        noisy = self.corrupt_steps(columns, self.tokens.step_of(t.expand(len(real)), real), rng, real)
        return keep_fixed(x0, noisy, editable)

    def corrupt_steps(
        self,
        x0: dict[str, Tensor],
        step: Int64[Tensor, " b"],
        rng: Rng,
        real: Bool[Tensor, "b n"],
        given: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Tensor]:
        """A draw after `step` visits of the real elements; padding and elements of `given` stay as they are."""
        visits = self.tokens.visits(step, real)
        if given is not None:
            visits = visits.masked_fill(given, 0)
        times = self.split(visits, x0)
        of_tokens, of_values = rng.column(TOKENS), rng.column(VALUES)
        kept = of_tokens.fold(_KEPT).uniform(x0[TOKENS].shape, step.device) < self.tokens.keep ** times[TOKENS].double()
        noise = (of_tokens.fold(_NOISE).uniform(x0[TOKENS].shape, step.device) * self.tokens.vocab_size).long()
        moved = self.decay(x0[VALUES], times[VALUES].double(), of_values)
        return {TOKENS: x0[TOKENS].where(kept, noise), VALUES: moved}

    def decay(self, values: Float[Tensor, "b m"], u: Float[Tensor, "b #m"], rng: Rng) -> Float[Tensor, "b m"]:
        """a^u values + sqrt(1 - a^2u) eps."""
        left = self.retention**u
        return (left * values + (1 - left**2).sqrt() * rng.normal(values.shape, values.device)).to(values.dtype)

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        """Refused: a visit to a number is undone in several smaller steps, which `InterleavedSteps` takes.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"Interleaved.reverse: met a {type(law).__name__}, but one law does not undo a visit to a number; sample "
            "with InterleavedSteps"
        )

    # -- tokens beside numbers ----------------------------------------------------------------------------------------

    def columns(self, x: State, operation: str) -> dict[str, Tensor]:
        """x, if it holds tokens and values of the same rows."""
        good = isinstance(x, dict) and set(x) == {TOKENS, VALUES}
        if not isinstance(x, dict) or not good or x[TOKENS].dtype != torch.int64 or not x[VALUES].is_floating_point():
            met: Any = sorted(x) if isinstance(x, dict) else "one tensor"
            raise TypeError(
                f"Interleaved.{operation}: met {met}, wanted tokens (b, l), int64, and values (b, m), floating"
            )
        return x

    def real(self, x: dict[str, Tensor], attention_mask: Tensor | None, operation: str) -> Bool[Tensor, "b n"]:
        """The elements that are no padding, tokens first."""
        shape = (len(x[TOKENS]), x[TOKENS].shape[1] + x[VALUES].shape[1])
        if attention_mask is None:
            return torch.ones(shape, dtype=torch.bool, device=x[TOKENS].device)
        if attention_mask.shape != shape or list(x) != [TOKENS, VALUES]:
            raise ValueError(
                f"Interleaved.{operation}: met an attention_mask {tuple(attention_mask.shape)} of {list(x)}, wanted "
                f"{shape}: the tokens and then the values of each row, as the state has them"
            )
        return attention_mask

    def split(self, elements: Tensor, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is told of all n elements, by column."""
        tokens, values = elements.split([x[TOKENS].shape[1], x[VALUES].shape[1]], 1)
        return {TOKENS: tokens, VALUES: values}
