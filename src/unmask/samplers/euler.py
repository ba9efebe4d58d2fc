"""Euler steps of the reverse chain."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.leaping import EULER, Leaping, Rule


@dataclass(frozen=True, kw_only=True)
class Euler(Leaping):
    """First-order steps of the reversed process's jump rates r, all sites at once:

        p(x_s = y | x_t) = (t - s) r(x_t -> y) / max(1, M),   y != x_t;   it stays with what is left,

    where M = (t - s) sum_{y != x_t} r(x_t -> y): a site that expects more than one jump makes one for sure. The step to
    s = 0 draws what is left from the process's own reverse law, and so does the first one where rates are infinite at
    t = 1.

    Exact in the limit of many steps, first order in their size. For masks and a linear schedule, (t - s) r is the exact
    chance of a reveal, and the sampler is `Ancestral`. Most sites of interpolating noise are left unasked: the chance
    of a jump has a ceiling that needs no value.

    Args:
        process: any noise on discrete sites.

    Raises:
        TypeError: for another process.

    References:
        Campbell et al., "A continuous time framework for discrete denoising models", 2022, arXiv:2205.14987; Lou, Meng,
        Ermon, "Discrete diffusion modeling by estimating the ratios of the data distribution", 2024, arXiv:2310.16834.
    """

    @property
    def rule(self) -> Rule:
        return EULER
