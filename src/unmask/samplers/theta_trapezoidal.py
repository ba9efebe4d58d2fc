"""The theta-trapezoidal solver of the reverse chain."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.two_stage import Plan, TwoStage


@dataclass(frozen=True, kw_only=True)
class ThetaTrapezoidal(TwoStage):
    """A leap over theta of the step, and one over the rest with the rates extrapolated from both ends of the first.

    With r = t - theta h, h = t - s, and mu the jump rates of the reversed process,

        x*  leaps from x_t for theta h at the rates  mu(x_t, t),
        x_s leaps from x*  for (1 - theta) h at      ( a1 mu(x*, r) - a2 mu(x_t, t) )_+,

    a1 = 1 / (2 theta (1 - theta)), a1 - a2 = 1. In a leap a site that expects M jumps makes one with probability
    1 - exp(-M), to a target in proportion to its rate, and no second one.

    A site that has jumped on the way to x* expects nothing more from the first leap, whose rates belong to the token
    that it has left: there the second leap runs at a1 mu(x*, r). Subtracting the old rates from it, as one reads the
    paper's formula when targets are tokens, takes the order away as steps get small, though not the accuracy of large
    ones; masks know no difference, since a revealed token has no rates.

    Second order in the step size as long as nothing is clipped, which theta = 1/2 avoids best; one order lower where
    clipping is frequent. Two network calls a step. The step to s = 0 draws what is left from the process's own reverse
    law with one call, and so does the first one where rates are infinite at t = 1. Exact in the limit of many steps.

    Args:
        process: any noise on discrete sites.
        theta: in (0, 1).

    Raises:
        TypeError: for another process.
        ValueError: for theta outside (0, 1).

    References:
        Ren et al., "Fast solvers for discrete diffusion models: theory and applications of high-order algorithms",
        2025, arXiv:2502.00234; Anderson, Mattingly, "A weak trapezoidal method for a class of stochastic differential
        equations", 2011, arXiv:0906.3475.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.theta < 1:
            raise ValueError(f"ThetaTrapezoidal: theta={self.theta}, wanted a number strictly between 0 and 1")

    @property
    def plan(self) -> Plan:
        ahead = 1 / (2 * self.theta * (1 - self.theta))
        return Plan(share=1 - self.theta, restarts=False, stayed=(ahead, 1 - ahead), left=(ahead, 0.0))
