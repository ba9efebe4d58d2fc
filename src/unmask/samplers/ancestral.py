"""Ancestral sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.law import Law, State
from unmask.ops import keep_top_k, keep_top_p, temper
from unmask.process import Process
from unmask.sampler import KernelSampler


@dataclass(frozen=True, kw_only=True)
class Ancestral(KernelSampler):
    """Draw x_s from the process's reverse law, p(x_s | x_t) = E_{x_0 ~ model} q(x_s | x_t, x_0), site by site.

    Exact in the limit of many steps (each step treats sites as independent given x_t); with one token revealed at a
    time it is exact for masked diffusion. Filters make it heuristic: they target a sharper law than the model's. With
    a model of scores this step is also known as Tweedie tau-leaping.

    For the masked process the positions to reveal are drawn first: the head is evaluated there only, and a step that
    reveals nothing makes no network call, so T steps on L tokens cost T (1 - (1 - 1/T)^L) calls on average (linear
    schedule).

    Args:
        process: any `Process`.
        temperature: >= 0; values below 1 sharpen the model's law; 0 takes the most probable value.
        top_k: draw among the k most probable values only.
        top_p: draw among the fewest values whose probabilities sum to at least top_p.

    Raises:
        ValueError: for a negative or NaN temperature, top_k < 1, or top_p outside (0, 1].

    References:
        Shi et al., "Simplified and generalized masked diffusion for discrete data", 2024, arXiv:2406.04329 (ancestral
        sampler); Lou et al., 2023, arXiv:2310.16834 (Tweedie tau-leaping); Holtzman et al., "The curious case of neural
        text degeneration", 2019, arXiv:1904.09751 (top-p).
    """

    process: Process
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"Ancestral: temperature={self.temperature}, wanted a finite number >= 0 (1 samples the model's law)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Ancestral: top_k={self.top_k}, wanted at least 1, or None to keep every value")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"Ancestral: top_p={self.top_p}, wanted a number in (0, 1], or None")

    def filters(self) -> list[Callable[[Tensor], Tensor]]:
        """The maps of log-probabilities (n, v) that the settings ask for, in order: temperature, top-k, top-p."""
        maps: list[Callable[[Tensor], Tensor]] = []
        if self.temperature != 1.0:
            maps.append(partial(temper, temperature=self.temperature))
        if self.top_k is not None:
            maps.append(partial(keep_top_k, k=self.top_k))
        if self.top_p is not None and self.top_p < 1.0:
            maps.append(partial(keep_top_p, p=self.top_p))
        return maps

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> Law:
        """The law of x_s given x_t = x; the network is not called before a value is needed, nor for idle rows."""
        law = ask(denoiser, x, t, **cond)
        for fn in self.filters():
            law = law.map(fn)
        return self.process.reverse(law, x, t, s)
