"""The theta-RK-2 solver of the reverse chain."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.two_stage import Plan, TwoStage


@dataclass(frozen=True, kw_only=True)
class ThetaRK2(TwoStage):
    """A trial leap over theta of the step, then the whole step from its start with the rates of both ends of the trial.

    With r = t - theta h, h = t - s, and mu the jump rates of the reversed process,

        x*  leaps from x_t for theta h at the rates  mu(x_t, t),
        x_s leaps from x_t for h at                  ( (1 - 1 / (2 theta)) mu(x_t, t) + mu(x*, r) / (2 theta) )_+.

    In a leap a site that expects M jumps makes one with probability 1 - exp(-M), and no second one. That counts for the
    jump that it may have made in the trial, too: such a site leaps at mu(x_t, t) alone. (Read with the rates of the
    token at x*, the formula counts it twice, and not even the time that a mask lasts is right to second order.)

    Second order for a single site that can jump once, a mask. First order otherwise: the trial's jumps are undone, and
    with them what sites, or two jumps of one site, had told each other; `ThetaTrapezoidal` keeps them. Two network
    calls a step, one at the ends of time, where the process's own reverse step is taken. Exact in the limit of many
    steps.

    Args:
        process: any noise on discrete sites.
        theta: in (0, 1]; at 1/2, the midpoint rule.

    Raises:
        TypeError: for another process.
        ValueError: for theta outside (0, 1].

    References:
        Ren et al., "Fast solvers for discrete diffusion models: theory and applications of high-order algorithms",
        2025, arXiv:2502.00234.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.theta <= 1:
            raise ValueError(f"ThetaRK2: theta={self.theta}, wanted a number in (0, 1]")

    @property
    def plan(self) -> Plan:
        ahead = 1 / (2 * self.theta)
        return Plan(share=1.0, restarts=True, stayed=(ahead, 1 - ahead), left=(0.0, 1.0))
