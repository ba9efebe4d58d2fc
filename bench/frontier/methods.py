"""The samplers of the frontier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unmask import Sampler
from unmask.correctors import Gibbs
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.first_hitting import FirstHitting
from unmask.samplers.maskgit import MaskGIT
from unmask.samplers.predictor_corrector import PredictorCorrector
from unmask.samplers.rdm import RoutedTopK
from unmask.samplers.remdm import ReMDM, Window, cap
from unmask.samplers.theta_trapezoidal import ThetaTrapezoidal
from unmask.samplers.unmask import Order, Unmask, by_schedule
from unmask.select.dilated import dilated
from unmask.select.entropy import entropy
from unmask.select.entropy_bound import entropy_bound
from unmask.select.left_to_right import left_to_right
from unmask.select.margin import margin
from unmask.select.random import random_order
from unmask.select.threshold import threshold
from unmask.select.top_probability import top_probability

Make = Callable[[Masked], Sampler]
ALL = 128  # tokens of a sample


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A sampler and the steps it is run with.

    Args:
        make: process -> sampler.
        steps: at the temperature 1.
        few: at the other temperatures.
    """

    make: Make
    steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    few: tuple[int, ...] = (16, 64)


TWO_CALLS: dict[str, Any] = {"steps": (4, 8, 16, 32, 64), "few": (8, 32)}  # those that make two calls a step
# those that may gain from more steps than the 128 tokens of a sample
PAST: dict[str, Any] = {"steps": (8, 16, 32, 64, 128, 256), "few": (16, 64, 256)}


def methods() -> dict[str, Entry]:
    """All samplers, by name: those that take a number of steps, and those that choose their own number of calls."""
    orders: dict[str, Order] = {
        "random": random_order,
        "left to right": left_to_right,
        "top probability": top_probability(),
        "margin": margin(),
        "entropy": entropy(),
        "dilated": dilated(block_size=32),
    }
    planned = {
        f"planned, {name}": Entry(make=lambda p, order=order: Unmask(process=p, order=order, quota=by_schedule))
        for name, order in orders.items()
    }
    return {
        "ancestral": Entry(make=lambda p: Ancestral(process=p), **PAST),
        "ancestral, Gibbs corrections": Entry(
            make=lambda p: PredictorCorrector(predictor=Ancestral(process=p), corrector=Gibbs(process=p)),
            **TWO_CALLS,
        ),
        "theta-trapezoidal": Entry(make=lambda p: ThetaTrapezoidal(process=p), **TWO_CALLS),
        **planned,
        "MaskGIT": Entry(make=lambda p: MaskGIT(process=p)),
        "routed, top k": Entry(make=lambda p: RoutedTopK(process=p)),
        "re-masking, cap": Entry(make=lambda p: ReMDM(process=p, sigma=cap(0.02)), **PAST),
        "re-masking, loop": Entry(make=lambda p: ReMDM(process=p, sigma=cap(0.05), window=Window()), **PAST),
        **adaptive(),
    }


def adaptive() -> dict[str, Entry]:
    """Rules that choose their own number of calls; they get as many steps as there are tokens."""
    rules: dict[str, Make] = {}
    for tau in (0.3, 0.7):
        rules[f"threshold {tau}"] = lambda p, tau=tau: Unmask(process=p, order=top_probability(), quota=threshold(tau))
    for gamma in (0.5, 2.0, 8.0):
        rules[f"entropy bound {gamma}"] = lambda p, gamma=gamma: Unmask(
            process=p, order=entropy(), quota=entropy_bound(gamma)
        )
    for parallel in (1, 2, 4, 8):
        rules[f"first hitting {parallel}"] = lambda p, n=parallel: FirstHitting(process=p, parallel=n)
    for parallel in (2, 4, 8):
        rules[f"first hitting, second order {parallel}"] = lambda p, n=parallel: FirstHitting(
            process=p, parallel=n, order=2
        )
    few = {"threshold 0.7", "entropy bound 0.5", "entropy bound 2.0", "first hitting 2", "first hitting 8"}
    return {name: Entry(make=make, steps=(ALL,), few=(ALL,) if name in few else ()) for name, make in rules.items()}
