"""Tau-leaping of the reverse chain."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.leaping import LEAP, SINGLE, Leaping, Rule


@dataclass(frozen=True, kw_only=True)
class TauLeaping(Leaping):
    """Every target y of a site gets Poisson((t - s) r(x_t -> y)) jumps, at rates r held fixed during the step.

    Tokens have no order, so that several jumps of one site have no sum. Either the first one counts,

        p(x_s != x_t) = 1 - exp(-M),   M = (t - s) sum_y r(x_t -> y),

    or such a site stays, p(x_s != x_t) = M exp(-M), and a mask that would be revealed twice is left to later steps. In
    both cases x_s = y in proportion to r(x_t -> y); Poisson counts for each target would give the same law. The step to
    s = 0 draws what is left from the process's own reverse law, and so does the first one where rates are infinite at
    t = 1.

    Exact in the limit of many steps, first order in their size. *Tweedie* tau-leaping, the best step of independent
    sites, is `Ancestral`: there every site follows its own p(x_s | x_t), which is also what the scores imply.

    Args:
        process: any noise on discrete sites.
        several: what several jumps of one site amount to: the "first" of them, or "none".

    Raises:
        TypeError: for another process.
        ValueError: for another rule.

    References:
        Gillespie, "Approximate accelerated stochastic simulation of chemically reacting systems", 2001; Campbell et
        al., "A continuous time framework for discrete denoising models", 2022, arXiv:2205.14987 (section 4.3: "none");
        Lou, Meng, Ermon, "Discrete diffusion modeling by estimating the ratios of the data distribution", 2024,
        arXiv:2310.16834 (Tweedie tau-leaping).
    """

    several: str = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.several not in ("first", "none"):
            raise ValueError(f"TauLeaping: several={self.several!r}, wanted 'first' or 'none'")

    @property
    def rule(self) -> Rule:
        return LEAP if self.several == "first" else SINGLE
