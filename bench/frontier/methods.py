"""The samplers of the frontier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unmask import Sampler
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.first_hitting import FirstHitting
from unmask.samplers.maskgit import MaskGIT
from unmask.samplers.remdm import ReMDM, Window, cap
from unmask.samplers.unmask import Order, Quota, Unmask, by_schedule
from unmask.select.dilated import dilated
from unmask.select.entropy import entropy
from unmask.select.entropy_bound import entropy_bound
from unmask.select.margin import margin
from unmask.select.random import random_order
from unmask.select.threshold import threshold
from unmask.select.top_probability import top_probability

Make = Callable[[Masked, float], Sampler]
ALL = 128  # tokens of a sample


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A sampler and the steps it is run with.

    Args:
        make: (process, temperature) -> sampler.
        steps: at the temperature 1.
        few: at the other temperatures.
    """

    make: Make
    steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    few: tuple[int, ...] = (16, 64)


PAST = (8, 16, 32, 64, 128, 256)  # a sample has 128 tokens: more steps than those
PAST_FEW = (16, 64, 256)


def methods() -> dict[str, Entry]:
    """Those that take a number of steps, by name."""
    planned: dict[str, Order] = {
        "planned, random": random_order,
        "planned, top probability": top_probability(),
        "planned, margin": margin(),
        "planned, entropy": entropy(),
        "planned, dilated": dilated(block_size=32),
    }
    found = {"ancestral": Entry(make=lambda p, temp: Ancestral(process=p, temperature=temp), steps=PAST, few=PAST_FEW)}
    for name, order in planned.items():
        found[name] = Entry(
            make=lambda p, temp, order=order: Unmask(process=p, order=order, quota=by_schedule, temperature=temp)
        )
    found["MaskGIT"] = Entry(make=lambda p, temp: MaskGIT(process=p, temperature=temp))
    rules: dict[str, dict[str, Any]] = {
        "re-masking, cap": {"sigma": cap(0.02)},
        "re-masking, loop": {"sigma": cap(0.05), "window": Window()},
    }
    for name, options in rules.items():
        found[name] = Entry(
            make=lambda p, temp, options=options: ReMDM(process=p, temperature=temp, **options),
            steps=PAST,
            few=PAST_FEW,
        )
    return found


def adaptive() -> dict[str, Entry]:
    """Rules that choose their own number of calls, by name and number; they get as many steps as there are tokens."""
    rules: dict[str, tuple[Order, Quota]] = {}
    for tau in (0.3, 0.5, 0.7, 0.9):
        rules[f"threshold {tau}"] = (top_probability(), threshold(tau))
    for gamma in (0.5, 2.0, 8.0):
        rules[f"entropy bound {gamma}"] = (entropy(), entropy_bound(gamma))
    found = {
        name: lambda p, temp, order=order, quota=quota: Unmask(process=p, order=order, quota=quota, temperature=temp)
        for name, (order, quota) in rules.items()
    }
    for parallel in (1, 2, 4, 8):
        found[f"first hitting {parallel}"] = lambda p, temp, n=parallel: FirstHitting(process=p, parallel=n)
    for parallel in (2, 4, 8):
        found[f"first hitting, second order {parallel}"] = lambda p, temp, n=parallel: FirstHitting(
            process=p, parallel=n, order=2
        )
    return {
        name: Entry(make=make, steps=(ALL,), few=() if "hitting" in name else (ALL,)) for name, make in found.items()
    }
